"""What a dashboard shows of a whole run: the numbers to sort runs by, and the categories of every round."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.flatten import CATEGORY_COLUMNS, category_rows, flatten_record
from fedbias_plugin.tracking.jsonl import METRICS_FILE, read_rounds
from fedbias_plugin.tracking.records import RoundRecord

MOST_CATEGORY_ROWS = 10_000
"""As many as W&B's charts read of a table."""
HISTORY_COLUMNS = (*CATEGORY_COLUMNS, "delta", "label")
SUMMARY_KEYS = {
    "round": "round",
    "bias_score": "global/bias_score",
    "delta": "global/delta",
    "delta_crows": "global/crows_pairs/delta",
    "delta_ss": "global/stereoset/delta",
    "crows": "global/crows_pairs/score",
    "crows_length_only": "global/crows_pairs/length_only",
    "ss": "global/stereoset/ss",
    "lms": "global/stereoset/lms",
    "icat": "global/stereoset/icat",
    "heldout_loss": "global/heldout_loss",
    "heldout_perplexity": "global/heldout_perplexity",
    "rouge_l": "global/rouge_l",
    "weight_on_poisoned": "aggregation/weight_on_poisoned",
    "effective_clients": "aggregation/effective_clients",
    "mass": "aggregation/mass",
}
"""Name below ``final/`` and ``best/`` -> key of :func:`flatten_record`."""


class Highlights:
    """Collects a run's rounds, in any number, into something of bounded size.

    Args:
        most_rows: rows of categories to keep; beyond, every second measured round is left out, then every fourth, ...
            The first and the last one always stay.
    """

    def __init__(self, most_rows: int = MOST_CATEGORY_ROWS) -> None:
        self._most_rows = most_rows
        self._final: Mapping[str, float] = {}
        self._best: Mapping[str, float] = {}
        self._kept: list[list[list[Any]]] = []
        self._last: list[list[Any]] = []
        self._measured, self._stride = 0, 1

    def add(self, record: RoundRecord) -> None:
        """Take the next round; one in which the global model was not measured changes nothing."""
        measured = record.global_
        if measured.bias_score is None and measured.heldout_loss is None:
            return
        flat = flatten_record(record)
        self._final = {name: flat[key] for name, key in SUMMARY_KEYS.items() if key in flat}
        best = self._best.get("bias_score")
        score = self._final.get("bias_score")
        if record.round > 0 and score is not None and (best is None or score < best):
            self._best = self._final
        self._add_categories(category_rows(record))

    def scalars(self) -> dict[str, float]:
        """``final/...`` of the last measured round, and ``best/...`` of the trained one with the least bias score."""
        parts = {"final": self._final, "best": self._best}
        return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}

    def category_rows(self) -> list[list[Any]]:
        """Rows of :data:`HISTORY_COLUMNS`, rounds ascending: those of ``flatten.category_rows``, Delta and a label."""
        rounds = self._kept if self._last in self._kept[-1:] else [*self._kept, self._last]
        return [[*row, _delta(row), f"{row[1]}: {row[2]}"] for rows in rounds for row in rows]

    def _add_categories(self, rows: list[list[Any]]) -> None:
        if not rows:
            return
        self._last = rows
        if self._measured % self._stride == 0:
            self._kept.append(rows)
        self._measured += 1
        if sum(map(len, self._kept)) + len(rows) > self._most_rows and len(self._kept) > 1:
            self._kept, self._stride = self._kept[::2], 2 * self._stride


def _delta(row: list[Any]) -> float | None:
    score = row[CATEGORY_COLUMNS.index("score")]
    return None if score is None else abs(score - UNBIASED)


def earlier_rounds(output_dir: str | os.PathLike[str], before: int) -> list[RoundRecord]:
    """Rounds before round ``before`` that an earlier process recorded in a run's folder, for a tracker that joins."""
    path = Path(output_dir) / METRICS_FILE
    return [record for record in read_rounds(path) if record.round < before] if path.exists() else []
