"""Krum and Multi-Krum (Blanchard et al. 2017, "Machine Learning with Adversaries", arXiv:1703.02757).

A client's score is the sum of the squared distances from its update to the C - f - 2 closest updates of others (at
least one); a low score means that many are near.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Weighting
from fedbias_plugin.aggregation.byzantine import ByzantineRule
from fedbias_plugin.errors import UserError

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.state import State
    from fedbias_plugin.tracking.records import RoundRecord

logger = logging.getLogger(__name__)


@dataclass
class Krum(ByzantineRule):
    """Takes the update of the one client with the lowest score.

    All clients count alike, as published: sample counts are not used. Equal scores go to the lowest client id.
    """

    name: ClassVar[str] = "krum"

    def selected(self, clients: int, byzantine: int) -> int:
        """How many of ``clients`` are averaged when f is ``byzantine``."""
        return 1

    def check(self, clients_a_round: int) -> None:
        """Raises UserError unless C - f >= 1; warns below C = 2f + 3, the fewest clients the proof covers."""
        byzantine = self.byzantine_clients
        if byzantine >= clients_a_round:
            raise UserError(
                f"--aggregation {self.name} with --byzantine_clients {byzantine} takes all of the {clients_a_round} "
                f"client(s) a round for attackers; give --byzantine_clients {clients_a_round - 1} at most, or have "
                f"{byzantine + 1} clients a round or more."
            )
        if clients_a_round < 2 * byzantine + 3:
            logger.warning(
                "%s is proved to withstand %d attacker(s) with at least %d clients a round (2f + 3), not with %d.",
                *(self.name, byzantine, 2 * byzantine + 3, clients_a_round),
            )

    def weigh(self, reports: ClientReports) -> Weighting:
        """1/m for each of the m selected clients, 0 for the others; f is lowered where a round has too few clients."""
        clients = len(reports.local_states)
        byzantine = min(self.byzantine_clients, clients - 1)
        if byzantine < self.byzantine_clients:
            logger.warning(
                "%s: %d client(s) in this round; taking %d of them for attackers instead of %d.",
                *(self.name, clients, byzantine, self.byzantine_clients),
            )
        scores = krum_scores(reports.global_state, reports.local_states, byzantine)
        best = sorted(scores, key=lambda client: (scores[client], client))[: self.selected(clients, byzantine)]
        weights = {client: 1 / len(best) if client in best else 0.0 for client in scores}
        return Weighting(weights, factors=weights, mass=1.0)

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """None: one client decides by definition."""
        return []


@dataclass
class MultiKrum(Krum):
    """Averages the updates of the C - f clients with the lowest scores."""

    name: ClassVar[str] = "multi_krum"

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """As every rule's."""
        return ByzantineRule.warnings(self, record, alpha)

    def selected(self, clients: int, byzantine: int) -> int:
        """C - f."""
        return clients - byzantine


def krum_scores(global_state: State, local_states: Mapping[int, State], byzantine: int) -> dict[int, float]:
    """Each client's score s(i): the sum of the squared distances to the C - f - 2 closest others, at least one.

    A client alone has score 0.

    Raises:
        ValueError: a client's state lacks a tensor or has another shape (client and name are given).
    """
    import torch

    distances = squared_distances(global_state, local_states)
    neighbours = max(1, len(local_states) - byzantine - 2)
    scores = {}
    for row, client in enumerate(local_states):
        others = torch.cat([distances[row, :row], distances[row, row + 1 :]])
        scores[client] = math.fsum(others.sort().values[:neighbours].tolist())
    return scores


def squared_distances(global_state: State, local_states: Mapping[int, State]) -> torch.Tensor:
    """Squared L2 distances between the clients' states, shape (C, C), float64, rows in the order of the mapping.

    Differences are taken before they are squared: with a product of matrices the digits of close states would cancel.
    """
    import torch

    from fedbias_plugin.aggregation.substitution import stacked

    clients = len(local_states)
    total = torch.zeros(clients, clients, dtype=torch.float64)
    for _, rows in stacked(global_state, local_states):
        for row in range(clients - 1):
            total[row, row + 1 :] += (rows[row + 1 :] - rows[row]).square_().sum(dim=1).cpu()
    return total + total.T
