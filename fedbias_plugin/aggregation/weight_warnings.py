"""What a reader must know of the weights of a round, from the numbers themselves (``docs/footguns.md``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from fedbias_plugin.metrics.base import delta
from fedbias_plugin.metrics.bias_score import bias_blocks

if TYPE_CHECKING:
    from fedbias_plugin.tracking.records import ClientRecord, RoundRecord

FEWEST_EFFECTIVE_CLIENTS = 1.2
"""Below this one of two clients has 91% of the weight or more."""
NOTABLE_FACTOR = 3.0
"""Weights that differ by more than this are decided by lambda; at e, lambda's own unit, clients are 1/lambda apart."""
IDLE_DEVIATION = 0.10
"""Weights that are all within this share of 1/C are plain averaging: at least 0.99 C effective clients."""
CLEARLY_DIFFERENT = 2.0
"""Bias scores that differ by more than so many times their noise would differ on other probe items too."""


class _Pair(NamedTuple):
    """Two weighed clients: how far their bias scores are apart and how far by chance, percentage points."""

    first: int
    second: int
    difference: float
    noise: float


def weight_warning(record: RoundRecord, advice: str = "") -> Iterator[str]:
    """Whether one client decides; ``advice`` is what to do about it."""
    weights = {client: row.weight for client, row in record.clients.items() if row.weight is not None}
    effective = record.effective_clients
    if effective is None or len(weights) < 2 or effective >= FEWEST_EFFECTIVE_CLIENTS:
        return
    top = max(weights, key=lambda client: weights[client])
    yield (
        f"one client decides: client {top} has {100 * weights[top] / sum(weights.values()):.0f}% of the weight "
        f"({effective:.2f} effective clients of {len(weights)}); the global model is nearly its model.{advice}"
    )


def lambda_warnings(record: RoundRecord, alpha: float, lambda_: float) -> Iterator[str]:
    """Whether lambda lets noise decide, or nothing; ``alpha`` of eq. 1, ``lambda_`` of eq. 2 per percentage point."""
    weights = {c: row.weight for c, row in record.clients.items() if row.weight is not None}
    pairs = _pairs(record, weights, alpha)
    # As if each client had drawn its own items. They share them, which leaves about half of the noise (measured on the
    # quickstart): what differs by less than this differs by at most two standard deviations of a paired comparison.
    apart = [pair for pair in pairs if pair.difference > CLEARLY_DIFFERENT * pair.noise]
    equal = 1.0 / len(weights) if weights else 0.0
    if apart and all(abs(weight - equal) <= IDLE_DEVIATION * equal for weight in weights.values()):
        yield _too_small(max(apart, key=lambda pair: pair.difference), len(weights), lambda_)
    most = math.log(NOTABLE_FACTOR)
    unclear = [
        pair
        for pair in pairs
        if pair.difference <= pair.noise
        and lambda_ * pair.difference > most
        and max(weights[pair.first], weights[pair.second]) >= equal
    ]
    if unclear:
        highest = most / max(pair.noise for pair in unclear)
        yield _too_large(max(unclear, key=lambda pair: pair.difference), highest, lambda_)


def _pairs(record: RoundRecord, weighed: Iterable[int], alpha: float) -> list[_Pair]:
    """Every two weighed clients of which bias score and noise are known."""
    known = []
    for client in weighed:
        score, deviation = record.clients[client].bias_score, bias_deviation(record.clients[client], alpha)
        if score is not None and deviation is not None:
            known.append((client, score, deviation))
    return [
        _Pair(first, second, abs(one - other), math.hypot(noise, more))
        for (first, one, noise), (second, other, more) in combinations(known, 2)
    ]


def _too_small(pair: _Pair, clients: int, lambda_: float) -> str:
    return (
        f"lambda too small: the bias scores of {_both(pair)} differ by {pair.difference:.1f} points, more than "
        f"twice their noise ({pair.noise:.1f}), yet every weight is within {100 * IDLE_DEVIATION:.0f}% of 1/{clients}: "
        f"the weights do nothing. Raise --bama_lambda ({lambda_:g}); at {math.log(2.0) / pair.difference:.2g} the more "
        "biased of the two would weigh half as much as the other."
    )


def _too_large(pair: _Pair, highest: float, lambda_: float) -> str:
    exponent = lambda_ * pair.difference
    times = f"{math.exp(exponent):.1f} times" if exponent < math.log(1000.0) else "more than 1000 times"
    return (
        f"lambda too large: the bias scores of {_both(pair)} differ by {pair.difference:.1f} points, no more than "
        f"their noise ({pair.noise:.1f}), yet one weighs {times} the other: noise decides. Lower --bama_lambda "
        f"({lambda_:g}) to {_rounded_down(highest):g}, or take more probe items (--bama_crows_fraction, "
        "--bama_stereoset_fraction)."
    )


def _both(pair: _Pair) -> str:
    return f"clients {pair.first}, {pair.second}"


def _rounded_down(value: float) -> float:
    """To two digits: advice that is rounded up would not silence the warning."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.floor(value / step) * step:.2g}")


def bias_deviation(client: ClientRecord, alpha: float) -> float | None:
    """Standard deviation of b_i over other probe items of the same kind, percentage points.

    SS has its ``standard_error`` over target terms, others their interval's width / 3.92 (a normal's);
    where a record has neither, what ``noise_floor`` implies. The bias score adds up distances to 50, which fold the
    score there: see :func:`folded_deviation`. The benchmarks are independent, so ``alpha sqrt(d_crows^2 + d_ss^2)``.
    None when neither was measured.
    """
    deviations = [_distance_deviation(block) for block in bias_blocks(client.metrics)]
    if not deviations or any(deviation is None for deviation in deviations):
        return None
    return alpha * math.hypot(*(deviation or 0.0 for deviation in deviations))


def folded_deviation(distance: float, deviation: float) -> float:
    """Standard deviation of |X| for a normal X with mean ``distance`` and standard deviation ``deviation``.

    Far from 0 it is ``deviation``; at 0 it is ``sqrt(1 - 2/pi)`` times that, since both sides fall together.

    >>> round(folded_deviation(0.0, 1.0), 4), round(folded_deviation(5.0, 1.0), 4)
    (0.6028, 1.0)
    """
    if deviation <= 0.0:
        return 0.0
    ratio = distance / deviation
    mean = math.sqrt(2.0 / math.pi) * math.exp(-(ratio**2) / 2.0) + ratio * math.erf(ratio / math.sqrt(2.0))
    return deviation * math.sqrt(max(0.0, 1.0 + ratio**2 - mean**2))


def _distance_deviation(block: Mapping[str, Any]) -> float | None:
    distance, bounds, floor = delta(block), block.get("ci95"), block.get("noise_floor")
    if distance is None:
        return None
    if (error := block.get("standard_error")) is not None:
        deviation = error
    elif bounds and None not in bounds:
        deviation = (bounds[1] - bounds[0]) / 3.92
    elif floor is not None:
        deviation = floor * math.sqrt(math.pi / 2.0)
    else:
        return None
    return folded_deviation(distance, deviation)
