"""Which numbers a run scores in: what was asked for, or what a trial on its own items decides (docs/metrics.md)."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Metric

if TYPE_CHECKING:
    from fedbias_plugin.scoring.processes import Processes
    from fedbias_plugin.scoring.scorer import SentenceScorer

logger = logging.getLogger(__name__)

TRIAL_ITEMS = 512
"""Most items of a metric that are scored both ways: about what one client's probe items are."""
MOST_FLIPS = 0.5
"""Percent of the items whose preference may turn round; it must stay below."""
LARGEST_DIFFERENCE = 0.3
"""Percentage points by which a score may move."""


@dataclass(frozen=True)
class ScoringChoice:
    """What a run is scored in, and why; recorded in ``run.json`` and kept by a resumed run.

    Attributes:
        asked: the flag.
        dtype: of the matrix products of a forward pass.
        reason: a line.
        trial: metric -> ``items``, ``sign_flips_percent`` and ``largest_difference`` (of its
            scores, percentage points); empty where nothing was tried.
    """

    asked: str
    dtype: str
    reason: str
    trial: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The attributes."""
        return {**vars(self), "trial": {name: dict(found) for name, found in self.trial.items()}}


MakeScorer = Callable[[str], "SentenceScorer"]
"""A scorer of the untouched model in a dtype."""


def choose_dtype(
    asked: str,
    model: Any,
    items: Sequence[tuple[Metric, Sequence[int]]],
    make_scorer: MakeScorer,
    *,
    seed: int,
    processes: Processes,
) -> ScoringChoice:
    """What ``model`` is scored in.

    Args:
        asked: ``auto``, ``float32`` (the model's own type) or ``bfloat16``.
        model: untouched.
        items: metrics, each with the items that a trial may use.
        make_scorer: see :data:`MakeScorer`.
        seed: draws the items where there are more than :data:`TRIAL_ITEMS`, and the intervals.
        processes: those that score together; all must have the units.

    Raises:
        UserError: ``bfloat16`` was asked for and the model cannot be scored so.
    """
    from fedbias_plugin.scoring.precision import AUTO, BFLOAT16, check_dtype, obstacle, own_dtype, units_missing

    own = own_dtype(model)
    if asked != AUTO:
        check_dtype(model, asked)
        return ScoringChoice(asked, BFLOAT16 if asked == BFLOAT16 else own, "asked for")
    missing = obstacle(model) or units_missing(model)
    if processes.size > 1 and processes.total(np.array([float(bool(missing))])).sum() and not missing:
        missing = "another process has no units for bfloat16"
    if own == BFLOAT16 or missing:
        choice = ScoringChoice(asked, own, missing or "the model is in bfloat16")
    else:
        choice = _tried(asked, own, [pair for pair in items if pair[1]], make_scorer, seed)
    logger.info("models are scored in %s: %s", choice.dtype, choice.reason)
    return choice


def _tried(
    asked: str, own: str, items: Sequence[tuple[Metric, Sequence[int]]], make_scorer: MakeScorer, seed: int
) -> ScoringChoice:
    from fedbias_plugin.scoring.precision import BFLOAT16

    trial: dict[str, dict[str, float]] = {}
    for metric, some in items:
        drawn = sorted(random.Random(seed).sample(list(some), min(TRIAL_ITEMS, len(some))))
        exact = metric.measure(make_scorer(own), drawn)
        if not hasattr(exact, "margins"):
            continue
        try:
            rounded = metric.measure(make_scorer(BFLOAT16), drawn)
        except UserError as error:
            return ScoringChoice(asked, own, f"bfloat16 failed in the trial ({error})", trial)
        trial[metric.name] = compared(metric, exact, rounded, seed)
    shown = "; ".join(
        f"{name}: {one['sign_flips_percent']:.2f}% of {one['items']} items turn round, scores move by at most "
        f"{one['largest_difference']:.2f} points"
        for name, one in trial.items()
    )
    if not trial:
        return ScoringChoice(asked, own, "there are no items to try bfloat16 on")
    is_close = all(
        one["sign_flips_percent"] < MOST_FLIPS and one["largest_difference"] <= LARGEST_DIFFERENCE
        for one in trial.values()
    )
    return ScoringChoice(asked, BFLOAT16 if is_close else own, shown, trial)


def compared(metric: Metric, exact: Any, rounded: Any, seed: int) -> dict[str, float]:
    """Two measurements of one model on the same items, as a trial compares them.

    Args:
        metric: whose.
        exact, rounded: its scores, with ``margins``.
        seed: of the intervals of its result.

    Returns:
        ``items``; ``sign_flips_percent`` of them, in which the other sentence is preferred (a tie is a side of its
        own); ``largest_difference`` of the metric's scores, LMS among them, percentage points.
    """
    first, second = (np.sign(scores.margins[0]) for scores in (exact, rounded))
    before, after = (metric.block(metric.result(scores, seed=seed)) for scores in (exact, rounded))
    names = [name for name in {"value", metric.main, "lms"} if isinstance(before.get(name), float | int)]
    moved = [abs(float(before[name]) - float(after[name])) for name in names]
    flips = 100.0 * float(np.mean(first != second)) if len(first) else 0.0
    return {"items": len(first), "sign_flips_percent": flips, "largest_difference": max(moved, default=0.0)}
