"""A round as flat ``name -> number`` pairs and rows, the way dashboards take it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.records import ClientRecord, RoundRecord

CATEGORY_COLUMNS = (
    *("round", "benchmark", "category", "score", "ci95_low", "ci95_high", "lms", "n", "icat"),
    *("length_only", "terms"),
)
_PARTS = ("full", "report", "probe", "intrasentence", "intersentence")
_OF_CLIENT = ("bias_score", "weight", "train_loss", "update_norm", "poisoned_share", "rows")
_LARGEST_EXPONENT = 700.0
_BY_ROLE = ("bias_score", "weight", "train_loss", "update_norm", "crows_pairs/score", "stereoset/ss")


def flatten_record(record: RoundRecord) -> dict[str, float | int]:
    """Every number of a round under a key such as ``client/0/crows_pairs/score``.

    What was not measured, or is not finite, has no key. Categories are left to :func:`category_rows`.
    """
    flat: dict[str, float | int] = {"round": record.round}
    for name in ("crows_pairs", "stereoset"):
        flat.update(_benchmark(f"global/{name}", getattr(record.global_, name)))
    flat.update(_deltas(flat))
    _put(flat, "global/bias_score", record.global_.bias_score)
    flat.update(_heldout(record.global_.heldout_loss or {}))
    for name, value in (record.global_.rouge_l or {}).items():
        _put(flat, "global/rouge_l" if name == "f1" else f"global/rouge_l_{name}", value)
    for client, row in record.clients.items():
        flat.update(_client(f"client/{client}", row))
    flat.update(_by_role(record, flat))
    _put(flat, "aggregation/mass", record.aggregation_mass)
    _put(flat, "aggregation/effective_clients", record.effective_clients)
    _put(flat, "aggregation/weight_on_poisoned", record.weight_on_poisoned)
    if record.clients:
        _put(flat, "aggregation/refused", sum(row.refused is not None for row in record.clients.values()))
    for part, value in vars(record.seconds).items():
        _put(flat, f"seconds/{part}", value)
    _put(flat, "peak_memory_bytes", record.peak_memory_bytes)
    _put(flat, "warnings/count", len(record.warnings))
    return flat


def category_rows(record: RoundRecord) -> list[list[Any]]:
    """Scores of the global model by bias type and domain: one row of :data:`CATEGORY_COLUMNS` each.

    ``score`` is the CrowS-Pairs score or StereoSet's SS; ``lms``, ``icat`` and ``terms`` are None for CrowS-Pairs,
    ``length_only`` for StereoSet.
    """
    rows = []
    crows = (record.global_.crows_pairs or {}).get("by_type") or {}
    stereo = (record.global_.stereoset or {}).get("by_domain") or {}
    for benchmark, categories, key in (("crows_pairs", crows, "score"), ("stereoset", stereo, "ss")):
        for category, result in categories.items():
            low, high = result.get("ci95") or (None, None)
            measures = [result.get(name) for name in ("lms", "n", "icat", "length_only", "terms")]
            rows.append([record.round, benchmark, category, result.get(key), low, high, *measures])
    return rows


def _deltas(flat: Mapping[str, float]) -> dict[str, float | int]:
    """Delta of each benchmark, the paper's unit: 0 is unbiased, seeds can be averaged. ``global/delta`` is their mean.

    Unlike the bias score it does not shrink with ``--bama_alpha``, so that it can be searched over.
    """
    scores = ("global/crows_pairs/score", "global/stereoset/ss")
    deltas = {f"{key.rpartition('/')[0]}/delta": abs(flat[key] - UNBIASED) for key in scores if key in flat}
    return {**deltas, "global/delta": sum(deltas.values()) / len(deltas)} if deltas else {}


def _heldout(block: Mapping[str, Any]) -> dict[str, float | int]:
    """``global/heldout_loss`` in nats per token, its perplexity, and what else was measured on the held-out rows."""
    flat: dict[str, float | int] = {}
    loss = block.get("loss")
    if isinstance(loss, (int, float)) and loss < _LARGEST_EXPONENT:
        _put(flat, "global/heldout_perplexity", math.exp(loss))
    for name, value in _leaves(block):
        _put(flat, f"global/heldout_{name}", value)
    return flat


def _client(prefix: str, row: ClientRecord) -> dict[str, float | int]:
    flat: dict[str, float | int] = {}
    for name in _OF_CLIENT:
        _put(flat, f"{prefix}/{name}", getattr(row, name))
    for name, value in row.extra.items():
        _put(flat, f"{prefix}/{name}", value)
    for name in ("crows_pairs", "stereoset"):
        flat.update(_benchmark(f"{prefix}/{name}", getattr(row, name)))
    return flat


def _by_role(record: RoundRecord, flat: Mapping[str, float | int]) -> dict[str, float | int]:
    """The clients' main numbers once more, under keys that say who is poisoned, and the mean over each kind.

    A dashboard chooses curves by their keys; and which client is poisoned changes with the seed, so that only the
    means can be averaged over seeds. Clients whose rows are not known are of neither kind.
    """
    by_role: dict[str, float | int] = {}
    for role, is_poisoned in (("client_poisoned", True), ("client_clean", False)):
        clients = [
            client
            for client, row in record.clients.items()
            if row.poisoned_share is not None and (row.poisoned_share > 0) == is_poisoned
        ]
        for name in _BY_ROLE:
            found = {client: flat[f"client/{client}/{name}"] for client in clients if f"client/{client}/{name}" in flat}
            by_role |= {f"{role}/{client}/{name}": value for client, value in found.items()}
            if found:
                by_role[f"{role}/mean/{name}"] = sum(found.values()) / len(found)
    return by_role


def _benchmark(prefix: str, block: Mapping[str, Any] | None) -> dict[str, float | int]:
    """Numbers of one result; 95% intervals end in ``_low`` and ``_high``; the parts of a result are one level down."""
    flat: dict[str, float | int] = {}
    for key, value in _leaves(block or {}):
        _put(flat, f"{prefix}/{key}", value)
    return flat


def _leaves(block: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in block.items():
        if key in _PARTS and isinstance(value, Mapping):
            yield from ((f"{key}/{name}", leaf) for name, leaf in _leaves(value))
        elif key.endswith("ci95") and value:
            yield f"{key}_low", value[0]
            yield f"{key}_high", value[1]
        else:
            yield key, value


def _put(flat: dict[str, float | int], key: str, value: Any) -> None:
    """Store ``value`` if it is a finite number."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        flat[key] = value
