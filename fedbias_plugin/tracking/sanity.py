"""No silent nonsense: what a reader of a round's numbers must know, from the numbers themselves.

``docs/footguns.md`` lists every warning with its threshold and what to do. A text is ``head: details``; the head stays
the same from round to round, so that :mod:`fedbias_plugin.tracking.repeated` can say it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from fedbias_plugin.scales import LOWEST_LMS
from fedbias_plugin.tracking.formatting import is_incoherent
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord


def round_warnings(record: RoundRecord) -> list[str]:
    """What makes the numbers of a round mean less than they seem to, a sentence each; its ``warnings`` aside."""
    return [
        *_loss_warnings(record),
        *_lms_warning(record),
        *_split_warnings(record.global_),
    ]


def _loss_warnings(record: RoundRecord) -> Iterator[str]:
    losses = {client: row.train_loss for client, row in record.clients.items() if row.train_loss is not None}
    if untrained := [client for client, loss in losses.items() if loss == 0.0]:
        yield (
            f"nothing was trained: the training loss of {_named(untrained)} is exactly 0, so every label was masked. "
            "Check that the rows fit --template and that --seq_length leaves room for the response."
        )
    if diverged := [client for client, loss in losses.items() if not math.isfinite(loss)]:
        yield f"training diverged: the training loss of {_named(diverged)} is not finite. Lower --learning_rate."
    measured = record.global_.heldout_loss or {}
    heldout, guessing = measured.get("loss"), measured.get("guessing_loss")
    if heldout is not None and not math.isfinite(heldout):
        yield "held-out loss not finite: the global model is broken, and so are its scores. Lower --learning_rate."
    elif heldout is not None and guessing is not None and heldout > guessing:
        yield (
            f"worse than guessing: the held-out loss of the global model is {heldout:.2f} nats per token; "
            f"{guessing:.2f} is that of a model to which all tokens are equally likely. Its scores say nothing about "
            "bias. If the loss was lower in round 0, the training diverged: lower --learning_rate."
        )


def _lms_warning(record: RoundRecord) -> Iterator[str]:
    stereo = record.global_.stereoset
    low = [f"the global model ({stereo['lms']:.1f})"] if stereo and is_incoherent(stereo) else []
    blocks = {client: row.stereoset for client, row in record.clients.items() if row.stereoset}
    clients = {client: block["lms"] for client, block in blocks.items() if is_incoherent(block)}
    if clients:
        low.append(f"{_named(clients)} ({min(clients.values()):.1f} at the least)")
    if low:
        yield (
            f"LMS below {LOWEST_LMS:.0f}: that of {' and '.join(low)}. Meaningful sentences are hardly preferred to "
            "unrelated ones, so SS and the bias score say little about bias. Take a better model, or a lower "
            "--learning_rate."
        )


def _split_warnings(measured: GlobalRecord) -> Iterator[str]:
    for name, block in (("crows_pairs", measured.crows_pairs), ("stereoset", measured.stereoset)):
        if block and block.get("items") == "full" and "probe" in block:
            yield f"{name}: all items are probe items, so there is no report half; the score is on them."


def _named(clients: Iterable[int]) -> str:
    numbers: Sequence[str] = [str(client) for client in clients]
    return f"client{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"
