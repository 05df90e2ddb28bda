"""What a run writes beside its metrics: ``run.json``, ``manifest.json``, ``probe.json``, item scores, the summary."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedbias_plugin.files import write_bytes_atomic
from fedbias_plugin.metrics.base import delta
from fedbias_plugin.tracking.numbers import best_round, metric_names
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.repeated import repeated_warnings


def deltas(record: RoundRecord) -> dict[str, float]:
    """``Delta`` of each metric with an ideal, the paper's unit: |value - ideal| of the headline items."""
    found = {name: delta(block) for name, block in record.global_.metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


def summarise(history: Sequence[RoundRecord], details: Mapping[str, Any]) -> dict[str, Any]:
    """What ``summary.json`` holds: ``details`` of the run, first and final scores, Delta, best round."""
    measured = [record for record in history if record.global_.metrics]
    best = best_round(history)
    return {
        **details,
        "rounds": max((record.round for record in history), default=0),
        "first": _scores(measured[0]) if measured else None,
        "final": _scores(measured[-1]) if measured else None,
        "best_round": None if best is None else _scores(best),
        "warnings": [str(warning) for warning in repeated_warnings(history)],
        "seconds": sum(record.seconds.total for record in history),
        "peak_memory_bytes": max((record.peak_memory_bytes for record in history), default=0),
    }


def _scores(record: RoundRecord) -> dict[str, Any]:
    measured = record.global_
    return {
        "round": record.round,
        **dict.fromkeys(metric_names()),
        **measured.metrics,
        "bias_score": measured.bias_score,
        "delta": deltas(record),
    }


def write_item_scores(output_dir: Path, round_number: int, benchmark: str, scores: Any) -> Path:
    """Write the global model's per-item scores to ``scores/round_003_crows_pairs.npz``, for paired tests later.

    The file holds the fields of the metric's scores as arrays; ``numpy.load`` reads it without
    pickle.
    """
    import numpy as np

    path = output_dir / "scores" / f"round_{round_number:03d}_{benchmark}.npz"
    arrays: dict[str, Any] = {field.name: np.asarray(getattr(scores, field.name)) for field in fields(scores)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes_atomic(path, buffer.getvalue())
    return path
