"""Intervals, paired tests and noise floors (docs/metrics.md); never the global random state.

Pairs are many, and their intervals are bootstrapped. Target terms are few, where the percentile bootstrap is too narrow
(it covers 77% instead of 95% with 3, 92% with 16): theirs are Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from fedbias_plugin.scoring.items import FloatArray

RESAMPLES = 2000
EXACT_UP_TO = 1000
FEWEST_TERMS = 5
"""Below it no interval: one over so few terms would say more about the terms than about the model."""
SCORE_RANGE = (0.0, 100.0)
DIFFERENCE_RANGE = (-100.0, 100.0)

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


def standard_error(values: ArrayLike) -> float | None:
    """Of the mean of ``values`` (n,): their standard deviation (n - 1) over sqrt(n); None for a single value.

    >>> standard_error([50.0, 60.0, 70.0, 60.0])
    4.08248290463863
    """
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else None


def t_interval(values: ArrayLike, *, possible: Interval = SCORE_RANGE, level: float = 0.95) -> Interval | None:
    """Student's t interval of the mean of ``values`` (n,), a value a target term, cut to what is ``possible``.

    >>> [round(bound, 2) for bound in t_interval([50.0, 60.0, 70.0, 60.0, 60.0])]
    [51.22, 68.78]

    Returns:
        None below :data:`FEWEST_TERMS` values.
    """
    array = np.asarray(values, dtype=np.float64)
    error = standard_error(array)
    return _t_interval(float(array.mean()), error or 0.0, len(array), possible, level)


def jackknife_interval(
    estimate: float, without_one: ArrayLike, *, possible: Interval = SCORE_RANGE, level: float = 0.95
) -> Interval | None:
    """Student's t interval of a smooth function of means over terms, by the jackknife (Tukey 1958).

    For a mean it is :func:`t_interval`.

    Args:
        estimate: the function of all n terms.
        without_one: shape (n,): the function of all terms but one, for each.
        possible: what the interval is cut to.
        level: its coverage.

    Returns:
        None below :data:`FEWEST_TERMS` terms.
    """
    array = np.asarray(without_one, dtype=np.float64)
    n = len(array)
    error = math.sqrt((n - 1) / n * float(((array - array.mean()) ** 2).sum()))
    return _t_interval(estimate, error, n, possible, level)


def _t_interval(estimate: float, error: float, n: int, possible: Interval, level: float) -> Interval | None:
    if n < FEWEST_TERMS:
        return None
    half = float(stdtrit(n - 1, (1.0 + level) / 2.0)) * error
    return max(estimate - half, possible[0]), min(estimate + half, possible[1])


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
    """Mean of second minus first over the same groups (pairs, or target terms).

    Attributes:
        difference: the mean.
        ci95: of the mean; None where there are too few groups for one.
        p_value: two-sided.
        groups: how many.
    """

    difference: float
    ci95: Interval | None
    p_value: float
    groups: int


def paired_bootstrap(first: ArrayLike, second: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> PairedDifference:
    """Difference of two means over the same pairs, resampled together.

    The interval is the percentile bootstrap's; p is twice the share of resamples on the rarer side of zero, at least
    1 / resamples.

    Raises:
        ValueError: the arrays (n,) differ in shape or are empty.
    """
    differences = _differences(first, second)
    means = bootstrap_means(differences, seed=seed, resamples=resamples)
    rarer = min((means <= 0).sum(), (means >= 0).sum())
    p_value = min(1.0, 2.0 * (int(rarer) + 1) / (resamples + 1))
    interval = percentile_interval(means) if len(differences) > 1 else None
    return PairedDifference(float(differences.mean()), interval, p_value, len(differences))


def paired_t(first: ArrayLike, second: ArrayLike) -> PairedDifference:
    """Difference of two means over the same target terms: paired t-test and its interval, cut to [-100, 100].

    Where all terms differ by the same there is nothing to test against, and p is that of their signs,
    ``2^(1 - terms)``; it is 1 for a single term and for equal runs.

    >>> paired_t([50, 60, 70, 60, 60], [40, 50, 50, 60, 40]).difference
    -12.0

    Raises:
        ValueError: the arrays (n,), percent, differ in shape or are empty.
    """
    differences = _differences(first, second)
    n, mean, error = len(differences), float(differences.mean()), standard_error(differences)
    if not mean:
        p_value = 1.0
    elif not error:
        p_value = 2.0 ** (1 - n)
    else:
        p_value = 2.0 * float(stdtr(n - 1, -abs(mean) / error))
    return PairedDifference(mean, t_interval(differences, possible=DIFFERENCE_RANGE), p_value, n)


def paired_items(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None, *, seed: int
) -> PairedDifference:
    """Second minus first over items: resampled together, or by groups whose items agree the paired t of their means.

    ``first``, ``second``, ``groups`` have shape (n,); without groups items are independent. ``seed``: of the bootstrap.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if groups is None:
        return paired_bootstrap(before, after, seed=seed)
    found = np.asarray(groups)
    means = ([values[found == group].mean() for group in np.unique(found)] for values in (before, after))
    return paired_t(*means)


def _differences(first: ArrayLike, second: ArrayLike) -> FloatArray:
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if before.shape != after.shape:
        raise ValueError(f"paired arrays need one shape, not {before.shape} and {after.shape}")
    if not len(before):
        raise ValueError("a paired difference needs at least one pair of values")
    return after - before


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
    """E|SS - 50| in percentage points of an unbiased model whose every cluster is decided by itself.

    The groups' variances are ``100^2 / (4 n_g)``; their mean is taken as normal, whose mean absolute value is
    ``sqrt(2 / pi)`` standard deviations. Groups of one item each give ``50 sqrt(2 / (pi groups))``.
    """
    counts = np.asarray(items_per_group, dtype=np.float64)
    deviation = 50.0 * math.sqrt(float((1.0 / counts).sum())) / len(counts)
    return math.sqrt(2.0 / math.pi) * deviation


def term_noise_floor(scores: ArrayLike, clusters: ArrayLike) -> float:
    """E|SS - 50| in percentage points of an unbiased model whose target terms differ as much as these do.

    The clusters of a term agree: the model has a liking for the term, not for the stereotype. SS then spreads by the
    terms' standard error, whose mean absolute value is ``sqrt(2 / pi)`` times that; never less than
    :func:`macro_noise_floor`, below which only a model that is far from 50 can be.

    >>> round(term_noise_floor([20.0, 80.0, 40.0, 60.0], [32, 32, 32, 32]), 2)  # 3.53 if clusters were independent
    10.3

    Args:
        scores: SS of every target term, percent.
        clusters: of every target term.
    """
    spread = math.sqrt(2.0 / math.pi) * (standard_error(scores) or 0.0)
    return max(spread, macro_noise_floor(clusters))
