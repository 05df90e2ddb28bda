"""Coordinate-wise trimmed mean (Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv:1803.01498, def. 2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Weighting
from fedbias_plugin.aggregation.byzantine import ByzantineRule
from fedbias_plugin.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class TrimmedMean(ByzantineRule):
    """Mean of every coordinate without its f smallest and f largest values.

    All clients count alike, as published: sample counts are not used. f is a number of clients, where the paper has the
    share beta = f/C; 0 gives the plain mean.
    """

    is_sum: ClassVar[bool] = False

    def check(self, clients_a_round: int) -> None:
        """Raises UserError unless 2f < C, so that every coordinate keeps a value."""
        if 2 * self.byzantine_clients >= clients_a_round:
            raise UserError(
                f"--aggregation trimmed_mean leaves out the {self.byzantine_clients} smallest and largest of "
                f"{clients_a_round} client(s) a round, which leaves none; give --byzantine_clients "
                f"{(clients_a_round - 1) // 2}, or have {2 * self.byzantine_clients + 1} clients a round or more."
            )

    def weigh(self, reports: ClientReports) -> Weighting:
        """The trimmed mean as ``state``; there are no weights. With too few clients f is the largest that fits."""
        from fedbias_plugin.aggregation.coordinates import trimmed_mean_state

        clients = len(reports.local_states)
        trim = min(self.byzantine_clients, (clients - 1) // 2)
        if trim < self.byzantine_clients:
            logger.warning(
                "trimmed_mean: %d client(s) in this round; leaving out %d instead of %d at either end.",
                *(clients, trim, self.byzantine_clients),
            )
        state = trimmed_mean_state(reports.global_state, reports.local_states, trim)
        return Weighting({}, factors=None, mass=None, state=state)
