"""Agnostic federated learning (Mohri et al. 2019, "Agnostic Federated Learning", arXiv:1902.00146, section 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.options import option


def onto_simplex(point: Mapping[int, float]) -> dict[int, float]:
    """The nearest point, by L2 distance, whose entries are not negative and sum to 1.

    Entries are lowered by one threshold and cut off at 0 (Duchi et al. 2008, "Efficient Projections onto the
    l1-Ball", figure 1).

    >>> onto_simplex({0: 0.75, 1: 0.5, 2: -0.25})
    {0: 0.625, 1: 0.375, 2: 0.0}
    """
    total, threshold = 0.0, 0.0
    for count, value in enumerate(sorted(point.values(), reverse=True), start=1):
        total += value
        if value > (total - 1) / count:
            threshold = (total - 1) / count
    return {client: max(value - threshold, 0.0) for client, value in point.items()}


@dataclass
class Agnostic(Rule):
    """Minimax weights: clients whose loss is larger gain weight round by round, as if their mixture were the target.

    lambda begins uniform. Every round averages by lambda, then ``lambda <- projection(lambda + s F)`` with F the global
    model's losses on the clients' own test rows, nats per token, taken before the round, and s ``--agnostic_step``:
    stochastic AFL, whose two gradients are of the same point. The paper has all clients in every round. Where some
    are drawn (a choice of this package), those of the round share what they had together, and who comes for the first
    time has as much as the mean client.

    Attributes:
        shares: client id -> its lambda times the number of clients that have come so far.
    """

    reads_own: ClassVar[frozenset[str]] = frozenset({"client_loss"})

    agnostic_step: float = option(
        0.1, "step of the weights of agnostic along the clients' losses, 1 / (nats per token)", above=0
    )
    shares: dict[int, float] = field(default_factory=dict)

    def weigh(self, reports: ClientReports) -> Weighting:
        """This round's lambda as factors, for every server algorithm; then lambda's own step.

        Raises:
            ValueError: a client has no loss.
        """
        losses = reports.own("client_loss")
        shares = {client: self.shares.get(client, 1.0) for client in losses}
        together = math.fsum(shares.values())
        if together <= 0:  # all of them had lost everything, to clients that are not here
            shares, together = dict.fromkeys(shares, 1.0), float(len(shares))
        weights = {client: share / together for client, share in shares.items()}
        after = onto_simplex({c: weight + self.agnostic_step * losses[c] for c, weight in weights.items()})
        self.shares |= {client: weight * together for client, weight in after.items()}
        return Weighting.by_weights(weights, reports)

    def state_dict(self) -> dict[str, Any]:
        """The shares."""
        return {"shares": {str(client): share for client, share in self.shares.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.shares = {int(client): share for client, share in state["shares"].items()}
