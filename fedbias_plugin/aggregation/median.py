"""Coordinate-wise median (Yin et al. 2018, "Byzantine-Robust Distributed Learning", arXiv:1803.01498, def. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting


@dataclass
class Median(Rule):
    """Median of every coordinate over the clients, the mean of the two in the middle when their number is even.

    All clients count alike, as published: sample counts are not used.
    """

    is_sum: ClassVar[bool] = False

    def weigh(self, reports: ClientReports) -> Weighting:
        """The median as ``state``; there are no weights."""
        from fedbias_plugin.aggregation.coordinates import trimmed_mean_state

        # What a trimmed mean keeps when it leaves out as many as it can: the one or two values in the middle
        trim = (len(reports.local_states) - 1) // 2
        state = trimmed_mean_state(reports.global_state, reports.local_states, trim)
        return Weighting({}, factors=None, mass=None, state=state)
