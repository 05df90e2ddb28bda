"""A round as the curves that one looks at, ``name -> number``: those of W&B and TensorBoard (docs/wandb.md).

What stands before the slash is the section in which both show a curve. ``metrics.jsonl`` has every other number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.tracking.numbers import MEMORY, best_round, finite, last_measured, measures, run_measures
from fedbias_plugin.tracking.payload import has_curve, payload_numbers
from fedbias_plugin.tracking.records import ClientRecord, RoundRecord

SECTIONS = {
    "bias_score": "bias",
    **dict.fromkeys(("weight_on_poisoned", "effective_clients", "mass"), "aggregation"),
    "learning_rate": "train",
    **dict.fromkeys(("seconds", "peak_memory_mib", "payload"), "run"),
}
"""Measure, or what stands before its slash -> section; metrics are in ``bias`` where they have an ideal, else in
``eval``."""


def curve(measure: str, ideal: float | None = None) -> str:
    """The curve of a measure.

    >>> curve("seconds/train"), curve("stereoset/lms", 50.0), curve("heldout_loss")
    ('run/seconds_train', 'bias/stereoset_lms', 'eval/heldout_loss')
    """
    section = SECTIONS.get(measure.split("/")[0]) or ("eval" if ideal is None else "bias")
    return f"{section}/{measure.replace('/', '_')}"


def metric_measures(name: str) -> list[str]:
    """The measures of a metric that have a curve: its value, its distance from the ideal, and what its panels show."""
    keys = [key for _, keys in metric_class(name).panels for key in keys if key not in ("value", "delta")]
    return [name, f"{name}/delta", *(f"{name}/{key}" for key in dict.fromkeys(keys))]


def series(record: RoundRecord) -> dict[str, float]:
    """The finite numbers of a round that have a curve; what was not measured has none in this round."""
    found = measures(record)
    curves = _curves(record, found)
    return {
        "round": record.round,
        **{curves[name]: found[name] for name in curves if name in found},
        **(_of_clients(record) if record.clients else {}),
        **_for_clients(record),
        "run/warnings": len(record.warnings),
    }


def highlights(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """What a table of runs sorts by: ``final/MEASURE`` of the run, ``best/MEASURE`` of its best round."""
    final = {"round": last_measured(rounds).round, **run_measures(rounds)} if rounds else {}
    found = {f"final/{name}": value for name, value in final.items()}
    if best := best_round(rounds):
        numbers = {"round": best.round, **measures(best)}
        found |= {f"best/{name}": numbers[name] for name in ("round", *_curves(best, numbers)) if name in numbers}
    return found


def _curves(record: RoundRecord, found: Iterable[str]) -> dict[str, str]:
    """Measure -> curve, of the global model and the round; ``found`` are the round's measures."""
    known = {name for name in payload_numbers(record.payload) if not has_curve(record.payload, name)}
    curves = {name: curve(name) for name in found if name.split("/")[0] in SECTIONS and name not in known}
    curves |= {name: f"aggregation/{name}" for name in found if name in record.extra}
    for name, block in record.global_.metrics.items():
        curves |= {measure: curve(measure, block.get("ideal")) for measure in metric_measures(name)}
    return curves


def _of_clients(record: RoundRecord) -> dict[str, float]:
    """The clients' numbers, and their means over the poisoned and over the clean ones.

    Which client is poisoned changes with the seed, so that only these means can be averaged over seeds. A client whose
    rows are not known is of neither kind.
    """
    clients = {client: _of_client(row) for client, row in record.clients.items()}
    found = {f"client_{client}/{name}": value for client, own in clients.items() for name, value in own.items()}
    shares = {client: row.poisoned_share for client, row in record.clients.items() if row.poisoned_share is not None}
    for kind, is_poisoned in (("poisoned", True), ("clean", False)):
        members = [clients[client] for client, share in shares.items() if (share > 0) == is_poisoned]
        for name in dict.fromkeys(name for own in members for name in own):
            values = [own[name] for own in members if name in own]
            found[f"{kind}/{name}"] = sum(values) / len(values)
    losses = {client: own["train_loss"] for client, own in clients.items() if "train_loss" in own}
    if rows := sum(record.clients[client].rows for client in losses):
        found["train/loss"] = sum(record.clients[client].rows * loss for client, loss in losses.items()) / rows
    return found | {"aggregation/refused": sum(row.refused is not None for row in record.clients.values())}


def _for_clients(record: RoundRecord) -> dict[str, float]:
    """The global model on the rows of every client alone."""
    own = {name: metric_class(name).by_client(block) for name, block in record.global_.metrics.items()}
    return finite(
        {f"client_{client}/{name}": one["value"] for name, each in own.items() for client, one in each.items()}
    )


def _of_client(row: ClientRecord) -> dict[str, float]:
    """Its main numbers, what extensions add and rounds change, and the metrics that its bias score does not sum up."""
    main = {name: getattr(row, name) for name in ("bias_score", "weight", "train_loss", "update_norm")}
    others = {name: block.get("value") for name, block in row.metrics.items() if not metric_class(name).in_bias_score}
    extra = {name: value for name, value in row.extra.items() if name != MEMORY}
    return finite(main | extra | others)
