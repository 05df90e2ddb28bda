"""Norm clipping (Sun et al. 2019, "Can You Really Backdoor Federated Learning?", arXiv:1911.07963, section 4)."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.options import option


@dataclass
class NormClip(Rule):
    """Shortens every update to the norm c, then averages as the host does: ``g_i = h_i min(1, c / ||D_i||)``.

    h are the host's own factors, so sample counts are used where the host uses them. The paper's noise is not added.
    Without ``--clip_norm`` c is the median of the round's norms (Nguyen et al. 2022, arXiv:2101.02281), which needs no
    knowledge of the model and adapts to the round.
    """

    clip_norm: float | None = option(
        None,
        "with --aggregation norm_clip: longest update; without it the median of the round's update norms",
        above=0,
    )

    def weigh(self, reports: ClientReports) -> Weighting:
        """``factors`` is None, and the host's result its own bit for bit, where no update is longer than c.

        The weights are the factors divided by their sum, the mass.

        Raises:
            ValueError: a client of the round has no update norm.
        """
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        missing = sorted(set(reports.sample_counts) - set(reports.update_norms))
        if missing:
            raise ValueError(f"Norm clipping has no update norm for client(s) {missing}.")
        norms = {client: reports.update_norms[client] for client in reports.sample_counts}
        clip_norm = self.clip_norm if self.clip_norm is not None else statistics.median(norms.values())
        host = host_factors(reports.fed_alg, reports.sample_counts)
        if all(norm <= clip_norm for norm in norms.values()):
            return Weighting(host, factors=None, mass=1.0)
        factors = {
            client: host[client] * (clip_norm / norm if norm > clip_norm else 1.0) for client, norm in norms.items()
        }
        mass = math.fsum(factors.values())
        weights = {client: factor / mass for client, factor in factors.items()}
        return Weighting(weights, factors, mass)
