"""What a run writes beside its metrics: ``run.json``, ``manifest.json``, ``probe.json``, item scores, the summary."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fedbias_plugin.files import write_bytes_atomic
from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.repeated import repeated_warnings


def delta(record: RoundRecord) -> dict[str, float]:
    """``Delta`` of each benchmark, the paper's unit: |score - 50| in percentage points of the headline items."""
    found = {}
    if record.global_.crows_pairs:
        found["crows_pairs"] = abs(record.global_.crows_pairs["score"] - UNBIASED)
    if record.global_.stereoset:
        found["stereoset"] = abs(record.global_.stereoset["ss"] - UNBIASED)
    return found


def summarise(history: Sequence[RoundRecord], details: Mapping[str, Any]) -> dict[str, Any]:
    """What ``summary.json`` holds: ``details`` of the run, first and final scores, Delta, best round.

    The best round is the trained round whose global model had the smallest bias score.
    """
    measured = [record for record in history if record.global_.bias_score is not None]
    trained = [record for record in measured if record.round > 0]
    best = min(trained, key=lambda record: record.global_.bias_score or 0.0, default=None)
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
        "crows_pairs": measured.crows_pairs,
        "stereoset": measured.stereoset,
        "bias_score": measured.bias_score,
        "heldout_loss": measured.heldout_loss,
        "rouge_l": measured.rouge_l,
        "delta": delta(record),
    }


def write_item_scores(output_dir: Path, round_number: int, benchmark: str, scores: Any) -> Path:
    """Write the global model's per-item scores to ``scores/round_003_crows_pairs.npz``, for paired tests later.

    The file holds the fields of ``CrowsPairsScores`` or ``StereoSetScores`` as arrays; ``numpy.load`` reads it without
    pickle.
    """
    import numpy as np

    path = output_dir / "scores" / f"round_{round_number:03d}_{benchmark}.npz"
    arrays: dict[str, Any] = {field.name: np.asarray(getattr(scores, field.name)) for field in fields(scores)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes_atomic(path, buffer.getvalue())
    return path
