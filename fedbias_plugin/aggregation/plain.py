"""The host's own weighting."""

from __future__ import annotations

from dataclasses import dataclass

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.fed_algs import is_known


@dataclass
class Plain(Rule):
    """The server algorithm's own weighting: n_i/n, or 1/C for FedAdagrad, FedYogi and FedAdam."""

    def weigh(self, reports: ClientReports) -> Weighting:
        """The host's factors as weights; nothing is substituted. An algorithm of the host's own has no weights here."""
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        if not is_known(reports.fed_alg):
            return Weighting({}, factors=None, mass=None)
        return Weighting(host_factors(reports.fed_alg, reports.sample_counts), factors=None, mass=1.0)

    def sensitivity(self, clients: int) -> float:
        """1/C: with or without one client's update, where the denominator stays C."""
        return 1 / clients

    def weigh_bounded(self, reports: ClientReports, clients: int) -> Weighting:
        """1/C each, whatever its rows."""
        here = reports.sample_counts
        weights = dict.fromkeys(here, 1 / len(here)) if here else {}
        return Weighting(weights, dict.fromkeys(here, 1 / clients), len(here) / clients)
