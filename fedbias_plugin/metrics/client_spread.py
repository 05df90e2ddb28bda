"""How unequal the global model is over clients, and how unequal it would look by chance (docs/metrics.md).

A value a client: an accuracy, of which more is better, or a loss, of which less is. Every gap is larger where clients
are treated less equally.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from fedbias_plugin.metrics.statistics import RESAMPLES, Interval

OF_SIZE = 3
"""Clients of each side of the gap between large and small ones."""
MOST_DRAWN = 2**22
"""Rows that are drawn at once."""


def spread(values: Mapping[int, float], rows: Mapping[int, int], *, higher_is_better: bool) -> dict[str, float | None]:
    """What the values of C clients say together.

    >>> found = spread({0: 0.9, 1: 0.8, 2: 0.4}, {}, higher_is_better=True)
    >>> {name: round(found[name], 4) for name in ("value", "worst", "mean_worst", "best_worst", "variance", "jain")}
    {'value': 0.7, 'worst': 0.4, 'mean_worst': 0.3, 'best_worst': 0.5, 'variance': 0.0467, 'jain': 0.913}

    Args:
        values: client id -> value.
        rows: client id -> n_i, training rows.
        higher_is_better: False for losses, whose worst is the largest.

    Returns:
        ``value`` (the mean over clients), ``worst``, ``best``, ``variance`` and ``std`` (of the population: divided by
        C), ``mean_worst`` = |mean - worst|, ``best_worst`` = |best - worst|, ``small_large``, ``jain``. Of a single
        client all but the first three are None: one model on one test set has no gap.
    """
    array = np.asarray(list(values.values()), dtype=np.float64)
    worst, best = (array.min(), array.max()) if higher_is_better else (array.max(), array.min())
    found: dict[str, float | None] = {"value": float(array.mean()), "worst": float(worst), "best": float(best)}
    is_one = len(array) < 2
    variance = float(array.var())
    return found | {
        "variance": None if is_one else variance,
        "std": None if is_one else math.sqrt(variance),
        "mean_worst": None if is_one else float(abs(array.mean() - worst)),
        "best_worst": None if is_one else float(abs(best - worst)),
        "small_large": small_large(values, rows, higher_is_better=higher_is_better),
        "jain": None if is_one else jain(array),
    }


def jain(values: ArrayLike) -> float | None:
    """Jain's index ``(sum x)^2 / (C sum x^2)``: 1 where all are equal, 1/C where one has everything (Jain et al. 1984).

    >>> round(jain([0.9, 0.8, 0.4]), 4), jain([0.0, 0.0])
    (0.913, None)
    """
    array = np.asarray(values, dtype=np.float64)
    squares = float((array**2).sum())
    return float(array.sum()) ** 2 / (len(array) * squares) if squares else None


def small_large(values: Mapping[int, float], rows: Mapping[int, int], *, higher_is_better: bool) -> float | None:
    """Mean of the three clients with the most rows minus that of the three with the fewest; of losses the other way.

    Positive where small clients fare worse. None with fewer than six clients, and where the rows do not tell the two
    sides apart. Equal clients go by their ids.

    >>> small_large({c: 0.1 * c for c in range(6)}, {c: 10 + c for c in range(6)}, higher_is_better=True)
    0.3
    """
    known = sorted((client for client in values if client in rows), key=lambda client: (rows[client], client))
    if len(known) < 2 * OF_SIZE or rows[known[OF_SIZE - 1]] == rows[known[-OF_SIZE]]:
        return None
    small, large = (sum(values[client] for client in part) for part in (known[:OF_SIZE], known[-OF_SIZE:]))
    return round((large - small if higher_is_better else small - large) / OF_SIZE, 15)


def wilson(right: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share: ``right`` of ``n`` (Wilson 1927).

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    z = float(ndtri((1 + level) / 2))
    share, scale = right / n, 1 + z * z / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean_interval(value: float, errors: Sequence[float | None], possible: Interval) -> Interval | None:
    """95% interval of the mean over just these clients: normal, of their own standard ``errors``; None if one lacks it.

    It speaks of other test rows of these clients, not of other clients.
    """
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    half = float(ndtri(0.975)) * math.sqrt(sum(error**2 for error in known)) / len(known)
    return max(value - half, possible[0]), min(value + half, possible[1])


def chance_of_shares(right: float, counts: Sequence[int], *, seed: int, draws: int = RESAMPLES) -> dict[str, float]:
    """The gaps of clients with ``counts`` test rows that all share one accuracy, ``right`` of all rows.

    >>> found = chance_of_shares(400, [50] * 10, seed=0)  # of p = .8
    >>> round(found["chance_mean_worst"], 3)
    0.087
    """
    sizes = np.asarray(counts)
    drawn = np.random.default_rng(seed).binomial(sizes, right / sizes.sum(), size=(draws, len(sizes)))
    return _gaps(drawn / sizes, higher_is_better=True)


def chance_of_losses(
    nll: ArrayLike, tokens: ArrayLike, counts: Sequence[int], *, seed: int, draws: int = RESAMPLES
) -> dict[str, float]:
    """The gaps of clients with ``counts`` test rows each, all drawn with replacement from one pool of rows.

    Args:
        nll: shape (rows,): summed loss of every row of the pool.
        tokens: shape (rows,): what it is over.
        counts: test rows of each client.
        seed: of the draws.
        draws: how many.
    """
    pool = np.stack([np.asarray(nll, dtype=np.float64), np.asarray(tokens, dtype=np.float64)])
    rng = np.random.default_rng(seed)
    values = np.empty((draws, len(counts)))
    for client, count in enumerate(counts):
        step = max(1, MOST_DRAWN // count)
        for start in range(0, draws, step):
            chosen = rng.integers(pool.shape[1], size=(min(step, draws - start), count))
            sums = pool[:, chosen].sum(axis=2)
            values[start : start + step, client] = sums[0] / sums[1]
    return _gaps(values, higher_is_better=False)


def _gaps(values: NDArray[Any], *, higher_is_better: bool) -> dict[str, float]:
    """Mean over draws and 95th percentile of both gaps; ``values``: shape (draws, clients)."""
    worst, best = values.min(axis=1), values.max(axis=1)
    if not higher_is_better:
        worst, best = best, worst
    gaps = {"mean_worst": np.abs(values.mean(axis=1) - worst), "best_worst": np.abs(best - worst)}
    found = {f"chance_{name}": float(gap.mean()) for name, gap in gaps.items()}
    return found | {f"chance_{name}_high": float(np.percentile(gap, 95)) for name, gap in gaps.items()}
