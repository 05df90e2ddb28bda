"""How often a model prefers the response that is to be preferred, on held-out pairs that no client holds."""

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
class ScoredRows:
    """Preference rows that no client holds, and what scores a model on them."""

    rows: Sequence[Row]
    score: Callable[[Sequence[Row], SentenceScorer], RowScores]


@dataclass(frozen=True)
class PreferenceResult(Result):
    """Share of the pairs whose preferred response is likelier.

    Attributes:
        gap: mean of log pi(preferred) - log pi(rejected), nats.
        gap_ci95: its 95% interval, Student's t over pairs.
    """

    gap: float = 0.0
    gap_ci95: tuple[float, float] | None = None


@dataclass
class PreferenceAccuracy(Metric):
    """Share of held-out pairs with log pi(preferred) > log pi(rejected), sums over tokens, with Wilson's interval.

    A tie is wrong. A longer response is less likely, whoever prefers it: compare with round 0, not with 1/2.
    """

    preferred: ScoredRows | None = field(default=None, init=False, repr=False)

    name = "preference_accuracy"
    is_named = False
    title = "preference accuracy"
    higher_is_better = True
    digits = 4
    beside = ("gap",)
    by_round = ("gap",)
    panels = (
        ("Held-out pairs whose preferred response is likelier", ("value",)),
        ("Log-likelihood of preferred - rejected, nats", ("gap",)),
    )

    def prepare(self, source: Source) -> None:
        """Take the held-out pairs of a run that trains on preferences."""
        self.preferred = source.preferred

    @property
    def text_count(self) -> int:
        """Two a pair."""
        return 2 * len(self.preferred.rows) if self.preferred else 0

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> list[float] | None:
        """The gap of every pair that fits into ``--seq_length``; None where none does."""
        import numpy as np

        if self.preferred is None:
            return None
        gaps = self.preferred.score(self.preferred.rows, scorer).gap
        assert gaps is not None, "a pair has a rejected response"
        return gaps[~np.isnan(gaps)].tolist() or None

    def result(self, scores: Sequence[float], *, seed: int) -> PreferenceResult:
        """The share of pairs with a gap above 0, and the mean gap."""
        from fedbias_plugin.metrics.client_spread import wilson
        from fedbias_plugin.metrics.statistics import t_interval

        n, right = len(scores), sum(gap > 0 for gap in scores)
        return PreferenceResult(
            right / n,
            n,
            wilson(right, n),
            gap=sum(scores) / n,
            gap_ci95=t_interval(scores, possible=(-math.inf, math.inf)),
        )

    @classmethod
    def possible(cls, part: str) -> tuple[float, float] | None:
        """A share; a gap may be any number."""
        return None if part == "gap" else (0.0, 1.0)

    @classmethod
    def line(cls, block: Block) -> str:
        """``preference accuracy 0.7100 [0.61, 0.79] (100 pairs, gap 3.1 nats)``."""
        shown = " ".join(filter(None, [number(block["value"], 4), interval(block.get("ci95"), 2)]))
        return f"preference accuracy {shown} ({block['n']} pairs, gap {number(block.get('gap'), 1)} nats)"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The share and the gap."""
        pairs = f"{block.get('n', MISSING)} pairs"
        yield "preference accuracy", number(block["value"], 4), interval(block.get("ci95"), 2), pairs
        yield "preferred - rejected, nats", number(block.get("gap"), 2), interval(block.get("gap_ci95"), 2), pairs
