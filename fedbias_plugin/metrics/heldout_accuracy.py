"""Accuracy of a classifier on held-out rows that no client holds, beside that of the most frequent label."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import MISSING, interval, number

if TYPE_CHECKING:
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.tasks.base import RowScores


@dataclass(frozen=True)
class LabelledRows:
    """Rows whose label a classifier is to tell.

    Attributes:
        rows: that no client holds.
        score: scores of the scorer's model on rows.
        majority: the most frequent label among all clients' training rows.
        labels: how many labels there are.
    """

    rows: Sequence[Row]
    score: Callable[[Sequence[Row], SentenceScorer], RowScores]
    majority: str
    labels: int


@dataclass(frozen=True)
class AccuracyResult(Result):
    """Share of the rows whose likeliest label is theirs.

    Attributes:
        loss: mean cross-entropy, nats a row.
        majority: share of the rows that have the most frequent label of the training rows.
        labels: how many labels there are; 1/labels is guessing.
    """

    loss: float = 0.0
    majority: float = 0.0
    labels: int = 0


@dataclass
class HeldoutAccuracy(Metric):
    """Accuracy of the global model on clean rows that no client trains on, pooled, with Wilson's interval."""

    labelled: LabelledRows | None = field(default=None, init=False, repr=False)

    name = "heldout_accuracy"
    is_named = False
    title = "held-out accuracy"
    higher_is_better = True
    digits = 4
    beside = ("majority",)
    panels = (
        ("Held-out accuracy, and that of the majority label", ("value", "majority")),
        ("Held-out cross-entropy, nats a row", ("loss",)),
    )

    def prepare(self, source: Source) -> None:
        """Take the held-out rows of a run that classifies."""
        self.labelled = source.labelled

    @property
    def text_count(self) -> int:
        """One a row."""
        return len(self.labelled.rows) if self.labelled else 0

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> RowScores | None:
        """Loss of every row, and whether the model is right."""
        return self.labelled.score(self.labelled.rows, scorer) if self.labelled else None

    def result(self, scores: RowScores, *, seed: int) -> AccuracyResult:
        """The share of rows that are right."""
        from fedbias_plugin.metrics.client_spread import wilson

        assert self.labelled is not None, "measured rows are prepared"
        assert scores.right is not None, "a classifier is right or wrong"
        n, right = len(scores.right), float(scores.right.sum())
        majority = sum(row.response == self.labelled.majority for row in self.labelled.rows) / n
        loss = float(scores.nll.mean())
        return AccuracyResult(right / n, n, wilson(right, n), loss=loss, majority=majority, labels=self.labelled.labels)

    @classmethod
    def possible(cls, part: str) -> tuple[float, float]:
        """Shares, but for the loss."""
        return (0.0, math.inf) if part == "loss" else (0.0, 1.0)

    @classmethod
    def line(cls, block: Block) -> str:
        """``held-out accuracy 0.8133 [0.77, 0.85] (majority label 0.1700, 300 rows)``."""
        shown = " ".join(filter(None, [number(block["value"], 4), interval(block.get("ci95"), 2)]))
        return f"held-out accuracy {shown} (majority label {number(block.get('majority'), 4)}, {block['n']} rows)"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The accuracy, and what it is to be compared with."""
        n = f"n={block.get('n', MISSING)}"
        yield "held-out accuracy", number(block["value"], 4), interval(block.get("ci95"), 2), f"clean rows, {n}"
        yield "majority label", number(block.get("majority"), 4), "", f"the same rows, {n}"

    @classmethod
    def warnings(cls, of_model: Block | None, of_clients: object) -> Iterator[str]:
        """Whether the classifier is broken."""
        loss, labels = (of_model or {}).get("loss"), (of_model or {}).get("labels")
        if loss is not None and labels and not loss < 2 * math.log(labels):
            yield (
                f"worse than guessing: the cross-entropy of the classifier on held-out rows is {loss:.2f} nats a row; "
                f"{math.log(labels):.2f} is that of guessing among {labels} labels. If it was lower in round 0, the "
                "training diverged: lower --learning_rate."
            )
