"""Scores of the global model by bias type and domain, the rows of a dashboard's table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedbias_plugin.metrics.base import delta, metric_class
from fedbias_plugin.tracking.records import RoundRecord

MOST_ROWS = 10_000
"""As many as W&B's charts read of a table."""
COLUMNS = (
    *("round", "benchmark", "category", "score", "ci95_low", "ci95_high", "lms", "n", "icat"),
    *("length_only", "terms", "delta", "label"),
)


def category_rows(record: RoundRecord) -> list[list[Any]]:
    """One row of :data:`COLUMNS` a category; None where its metric has no such number."""
    rows = []
    for name, block in record.global_.metrics.items():
        metric = metric_class(name)
        for category, result in metric.categories(block).items():
            score, (low, high) = result.get(metric.main), result.get("ci95") or (None, None)
            measures = [result.get(key) for key in ("lms", "n", "icat", "length_only", "terms")]
            distance = delta({"value": score, "ideal": metric.ideal})
            rows.append([record.round, name, category, score, low, high, *measures, distance, f"{name}: {category}"])
    return rows


def category_history(rounds: Sequence[RoundRecord], most: int = MOST_ROWS) -> list[list[Any]]:
    """The rows of all rounds; beyond ``most`` rows rounds between the first and the last are left out evenly."""
    measured = [rows for record in rounds if (rows := category_rows(record))]
    stride, kept = 1, measured
    while sum(map(len, kept)) > most and stride < len(measured):
        stride += 1
        kept = [*measured[:-1:stride], measured[-1]]
    return [row for rows in kept for row in rows]
