"""How a round's weights are spread, in two numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class WeightSummary(NamedTuple):
    """How a round's weights are spread; both None when no client was weighted.

    Attributes:
        effective_clients: 1 / sum w_i^2, between 1 and the number of clients.
        weight_on_poisoned: sum of w_i over clients that hold any biased row, 0 to 1.
    """

    effective_clients: float | None
    weight_on_poisoned: float | None


def weight_summary(weights: Mapping[int, float], shares: Mapping[int, float]) -> WeightSummary:
    """Summarise client weights; weights that do not sum to one are divided by their sum first.

    >>> weight_summary({0: 0.5, 1: 0.25, 2: 0.25}, {0: 1.0, 1: 0.0, 2: 0.0})
    WeightSummary(effective_clients=2.6666666666666665, weight_on_poisoned=0.5)

    Args:
        weights: client id -> w_i, none negative.
        shares: client id -> share of biased rows; a client that is missing counts as clean. Without any share nothing
            is known of the rows, and ``weight_on_poisoned`` is None.

    Raises:
        ValueError: a weight is negative or not finite, or all are zero.
    """
    if not weights:
        return WeightSummary(None, None)
    total = sum(weights.values())
    if not 0 < total < float("inf") or any(weight < 0 for weight in weights.values()):
        raise ValueError(f"client weights must be finite, not negative and not all zero, got {dict(weights)}")
    shared = {client: weight / total for client, weight in weights.items()}
    poisoned = sum(weight for client, weight in shared.items() if shares.get(client, 0.0) > 0) if shares else None
    return WeightSummary(1.0 / sum(weight**2 for weight in shared.values()), poisoned)
