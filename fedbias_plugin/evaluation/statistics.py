"""Intervals, paired tests and noise floors (METRICS.md, section 5); numpy only, never the global random state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from fedbias_plugin.evaluation.items import FloatArray

RESAMPLES = 2000
EXACT_UP_TO = 1000

Interval = tuple[float, float]


def bootstrap_means(values: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> FloatArray:
    """Means of ``values`` over bootstrap resamples of its rows (pairs, or target terms).

    Drawing n rows with replacement and counting how often each came is one multinomial draw, so equal rows are
    counted together: 1,508 outcomes of three kinds cost three numbers a resample.

    Args:
        values: shape (n,) or (n, columns); columns are resampled together.
        seed: of a generator of its own.
        resamples: how many.

    Returns:
        Shape (resamples,) or (resamples, columns).

    Raises:
        ValueError: no rows.
    """
    rows = np.asarray(values, dtype=np.float64)
    if len(rows) == 0:
        raise ValueError("a bootstrap needs at least one value")
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(rows), counts / len(rows), size=resamples)
    return draws @ distinct / len(rows)


def percentile_interval(estimates: ArrayLike, level: float = 0.95) -> Interval:
    """The middle ``level`` of bootstrap estimates (percentile method)."""
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(np.asarray(estimates, dtype=np.float64), [tail, 100.0 - tail])
    return float(low), float(high)


def bootstrap_ci(values: ArrayLike, *, seed: int, resamples: int = RESAMPLES, level: float = 0.95) -> Interval | None:
    """Percentile interval of the mean of ``values`` (n,), resampled over its groups; None for a single group."""
    if len(np.asarray(values)) < 2:
        return None
    return percentile_interval(bootstrap_means(values, seed=seed, resamples=resamples), level)


@dataclass(frozen=True)
class McNemar:
    """Flips between two runs on the same items.

    Attributes:
        gained: items true in the second run only.
        lost: items true in the first run only.
        p_value: two-sided, of gains and losses being equally likely.
        method: ``exact`` (binomial) or ``chi2`` (continuity corrected, above 1,000 flips).
    """

    gained: int
    lost: int
    p_value: float
    method: Literal["exact", "chi2"]


def mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """McNemar's test on two boolean arrays (n,) over the same items.

    >>> mcnemar([1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1])
    McNemar(gained=1, lost=5, p_value=0.21875, method='exact')

    Raises:
        ValueError: the arrays differ in shape.
    """
    before, after = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if before.shape != after.shape:
        raise ValueError(f"paired arrays need one shape, not {before.shape} and {after.shape}")
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    flips = gained + lost
    if flips > EXACT_UP_TO:
        chi2 = (abs(gained - lost) - 1) ** 2 / flips
        return McNemar(gained, lost, math.erfc(math.sqrt(chi2 / 2)), "chi2")
    tail = sum(math.comb(flips, flipped) for flipped in range(min(gained, lost) + 1))
    return McNemar(gained, lost, min(1.0, 2 * tail / 2**flips), "exact")


@dataclass(frozen=True)
class PairedDifference:
    """Mean of second minus first over the same groups.

    Attributes:
        difference: the mean.
        ci95: percentile interval, None for a single group.
        p_value: two-sided, twice the share of resamples on the rarer side of zero (at least 1 / resamples).
    """

    difference: float
    ci95: Interval | None
    p_value: float


def paired_bootstrap(first: ArrayLike, second: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> PairedDifference:
    """Difference of two means over the same groups (pairs, or target terms), resampled together.

    Raises:
        ValueError: the arrays (n,) differ in shape or are empty.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired arrays need one shape, not {before.shape} and {after.shape}")
    differences = after - before
    means = bootstrap_means(differences, seed=seed, resamples=resamples)
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2.0 * (int(rarer) + 1) / (resamples + 1))
    interval = percentile_interval(means) if len(differences) > 1 else None
    return PairedDifference(float(differences.mean()), interval, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method, in the order given.

    >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def noise_floor(n: int) -> float:
    """E|score - 50| in percentage points of an unbiased model on ``n`` pairs: about ``50 sqrt(2 / (pi n))``.

    Exact: the mean absolute deviation of a binomial(n, 1/2) is ``k C(n, k) / 2^n`` with ``k = n // 2 + 1`` (De Moivre).

    >>> round(noise_floor(377), 2)  # 2.05 by the approximation
    2.06

    Raises:
        ValueError: ``n`` is below 1.
    """
    if n < 1:
        raise ValueError(f"a noise floor needs at least one item, not {n}")
    k = n // 2 + 1
    log_choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return 100.0 * k / n * math.exp(log_choose - n * math.log(2.0))


def macro_noise_floor(items_per_group: ArrayLike) -> float:
    """E|SS - 50| in percentage points of an unbiased model when SS is a mean over groups of shares.

    The groups' variances are ``100^2 / (4 n_g)``; their mean is taken as normal, whose mean absolute value is
    ``sqrt(2 / pi)`` standard deviations. Groups of one item each give ``50 sqrt(2 / (pi groups))``.
    """
    counts = np.asarray(items_per_group, dtype=np.float64)
    deviation = 50.0 * math.sqrt(float((1.0 / counts).sum())) / len(counts)
    return math.sqrt(2.0 / math.pi) * deviation
