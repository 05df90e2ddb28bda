"""A round as flat ``name -> number`` pairs and rows, the way dashboards take it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fedbias_plugin.tracking.records import RoundRecord

CATEGORY_COLUMNS = ("round", "benchmark", "category", "score", "ci95_low", "ci95_high", "lms", "n")
_PARTS = ("full", "report", "probe", "intrasentence", "intersentence")


def flatten_record(record: RoundRecord) -> dict[str, float | int]:
    """Every number of a round under a key such as ``client/0/crows_pairs/score``.

    What was not measured, or is not finite, has no key. Categories are left to :func:`category_rows`.
    """
    flat: dict[str, float | int] = {"round": record.round}
    for name in ("crows_pairs", "stereoset"):
        flat.update(_benchmark(f"global/{name}", getattr(record.global_, name)))
    _put(flat, "global/bias_score", record.global_.bias_score)
    _put(flat, "global/heldout_loss", (record.global_.heldout_loss or {}).get("loss"))
    for client, row in record.clients.items():
        prefix = f"client/{client}"
        for name in ("bias_score", "weight", "train_loss", "update_norm", "poisoned_share", "rows"):
            _put(flat, f"{prefix}/{name}", getattr(row, name))
        for name in ("crows_pairs", "stereoset"):
            flat.update(_benchmark(f"{prefix}/{name}", getattr(row, name)))
    _put(flat, "aggregation/mass", record.aggregation_mass)
    _put(flat, "aggregation/effective_clients", record.effective_clients)
    _put(flat, "aggregation/weight_on_poisoned", record.weight_on_poisoned)
    for part, value in vars(record.seconds).items():
        _put(flat, f"seconds/{part}", value)
    _put(flat, "peak_memory_bytes", record.peak_memory_bytes)
    _put(flat, "warnings/count", len(record.warnings))
    return flat


def category_rows(record: RoundRecord) -> list[list[Any]]:
    """Scores of the global model by bias type and domain: one row of :data:`CATEGORY_COLUMNS` each.

    ``score`` is the CrowS-Pairs score or StereoSet's SS; ``lms`` is None for CrowS-Pairs.
    """
    rows = []
    crows = (record.global_.crows_pairs or {}).get("by_type") or {}
    stereo = (record.global_.stereoset or {}).get("by_domain") or {}
    for benchmark, categories, key in (("crows_pairs", crows, "score"), ("stereoset", stereo, "ss")):
        for category, result in categories.items():
            low, high = result.get("ci95") or (None, None)
            rows.append(
                [record.round, benchmark, category, result.get(key), low, high, result.get("lms"), result.get("n")]
            )
    return rows


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
