"""No silent nonsense: what a reader of a round's numbers must know, from the numbers themselves.

``docs/footguns.md`` lists every warning with its threshold and what to do. A text is ``head: details``; the head stays
the same from round to round, so that :mod:`fedbias_plugin.tracking.repeated` can say it once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.formatting import named_clients
from fedbias_plugin.tracking.records import RoundRecord


def round_warnings(record: RoundRecord) -> list[str]:
    """What makes the numbers of a round mean less than they seem to, a sentence each; its ``warnings`` aside."""
    return [*_loss_warnings(record), *_metric_warnings(record)]


def _loss_warnings(record: RoundRecord) -> Iterator[str]:
    losses = {client: row.train_loss for client, row in record.clients.items() if row.train_loss is not None}
    if untrained := [client for client, loss in losses.items() if loss == 0.0]:
        yield (
            f"nothing was trained: the training loss of {named_clients(untrained)} is exactly 0, so every label was "
            "masked. Check that the rows fit --template and that --seq_length leaves room for the response."
        )
    if diverged := [client for client, loss in losses.items() if not math.isfinite(loss)]:
        yield f"training diverged: the training loss of {named_clients(diverged)} is not finite. Lower --learning_rate."


def _metric_warnings(record: RoundRecord) -> Iterator[str]:
    measured = [record.global_.metrics, *(row.metrics for row in record.clients.values())]
    names = dict.fromkeys(name for blocks in measured for name in blocks)
    # First what says that the model is broken: then its bias scores mean nothing.
    for name in sorted(names, key=lambda name: metric_class(name).ideal is not None):
        of_clients = {client: row.metrics[name] for client, row in record.clients.items() if name in row.metrics}
        yield from metric_class(name).warnings(record.global_.metrics.get(name), of_clients)
    for name, block in record.global_.metrics.items():
        if block.get("items") == "full" and "probe" in block:
            yield f"{name}: all items are probe items, so there is no report half; the score is on them."
