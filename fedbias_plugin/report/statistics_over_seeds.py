"""Means, intervals and paired tests over the seeds of a study (METRICS section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

LEVEL = 0.95
ROUNDING = 1e-9
"""A standard deviation below this, relative to the mean or to 1, is rounding: the values are equal."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """A measure over seeds.

    Attributes:
        mean: over the seeds.
        sd: standard deviation with n - 1; None for one seed.
        ci95: Student's t interval of the mean; None for one seed.
        n: seeds.
    """

    mean: float
    sd: float | None
    ci95: Interval | None
    n: int


@dataclass(frozen=True)
class SeedComparison:
    """Second minus first, paired by seed.

    Attributes:
        difference: spread of the differences.
        p_value: two-sided, of a paired t-test; None with fewer than two seeds in common, or when all differ equally.
        p_holm: ``p_value`` adjusted for the comparisons of its table, None before :func:`corrected`.
    """

    difference: Spread
    p_value: float | None
    p_holm: float | None = None


def spread(values: Iterable[float]) -> Spread | None:
    """Mean, standard deviation and 95% t interval over seeds; None without values.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, sd=1.0, ci95=(-0.484137711..., 4.484137711...), n=3)
    """
    known = list(values)
    n = len(known)
    if not n:
        return None
    mean = math.fsum(known) / n
    if n == 1:
        return Spread(mean, None, None, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    if sd <= ROUNDING * max(1.0, abs(mean)):
        return Spread(mean, 0.0, (mean, mean), n)
    from scipy.stats import t

    half = float(t.ppf((1.0 + LEVEL) / 2.0, n - 1)) * sd / math.sqrt(n)
    return Spread(mean, sd, (mean - half, mean + half), n)


def compare_seeds(first: Mapping[Any, float], second: Mapping[Any, float]) -> SeedComparison | None:
    """Differences ``second - first`` of the seeds (seed -> value) that both have; None without one in common."""
    shared = sorted(first.keys() & second.keys())
    difference = spread(second[seed] - first[seed] for seed in shared)
    if difference is None:
        return None
    if not difference.sd:  # one seed, or equal differences: nothing to test against
        return SeedComparison(difference, None)
    from scipy.stats import t

    statistic = difference.mean / (difference.sd / math.sqrt(difference.n))
    return SeedComparison(difference, float(2.0 * t.sf(abs(statistic), difference.n - 1)))


def corrected(comparisons: Sequence[SeedComparison | None]) -> list[SeedComparison | None]:
    """The comparisons of one table with p adjusted by Holm; those without a p count for nothing."""
    from fedbias_plugin.evaluation.statistics import holm

    tested = [(index, one.p_value) for index, one in enumerate(comparisons) if one and one.p_value is not None]
    result = list(comparisons)
    for (index, _), adjusted in zip(tested, holm([p for _, p in tested]), strict=True):
        one = result[index]
        assert one is not None  # by the choice above
        result[index] = replace(one, p_holm=adjusted)
    return result
