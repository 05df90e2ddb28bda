"""FedPSF: weights by progress and disparity (DWM), then by agreement (ABM); parts of an update (PSM) are a stage.

Jiang et al., "Fine-tuning large language models in federated learning with fairness-aware prompt selection"
(FedPSF-LLM, Neural Networks 194:108160). Of the paper only the abstract could be read: that there are three modules,
and what each is for. Every formula here is this package's own choice, and none is the paper's (docs/fairness.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import is_known
from fedbias_plugin.options import option, split_list

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedbias_plugin.state import State

PSM, DWM, ABM = "psm", "dwm", "abm"
MODULES = (PSM, DWM, ABM)
FEDPSF = {"aggregation": ("fedpsf",)}
LOSSES = ("heldout_loss", "heldout_accuracy")
"""Metrics of held-out rows, of a language model and of a classifier; both have a ``loss``."""
EQUAL = 1e-12
"""Values of a round that differ by less are equal."""


@dataclass
class FedPsfFlags:
    """Which of the modules work."""

    fedpsf_modules: str = option(
        ",".join(MODULES),
        "modules of --aggregation fedpsf, comma separated, or none: send parts of an update (psm), weigh by progress "
        "and disparity (dwm), weigh by agreement (abm)",
        choices=MODULES,
        many=True,
        read_when=FEDPSF,
    )

    def has(self, module: str) -> bool:
        """Whether a module works."""
        return module in split_list(self.fedpsf_modules)


def of_module(module: str) -> dict[str, tuple[str, ...]]:
    """When a flag of ``module`` is read."""
    return {**FEDPSF, "fedpsf_modules": (module,)}


@dataclass
class FedPsf(FedPsfFlags, Rule):
    """``w_i = u_i / sum u`` by DWM (the host's own without it), then ``(1 - eta) w_i + eta a_i`` by ABM."""

    dwm_gamma: float = option(0.5, "power of n_i in a client's weight", at_least=0, read_when=of_module(DWM))
    dwm_beta: float = option(
        1.0,
        "how much a client that lowered the held-out loss most weighs more; 0 measures no client for it",
        at_least=0,
        read_when=of_module(DWM),
    )
    dwm_kappa: float = option(
        1.0,
        "how much a client furthest from the mean direction weighs more; between -1 and 0, less",
        above=-1,
        read_when=of_module(DWM),
    )
    abm_temperature: float = option(
        1.0, "temperature of the softmax over agreement with the mean update", above=0, read_when=of_module(ABM)
    )
    abm_eta: float = option(
        0.5, "share of the weights that agreement decides", at_least=0, at_most=1, read_when=of_module(ABM)
    )

    @property
    def compares(self) -> tuple[str, ...]:
        """The loss on held-out clean rows, which stand for public text that the server holds."""
        return LOSSES if self.has(DWM) and self.dwm_beta else ()

    def weigh(self, reports: ClientReports) -> Weighting:
        """The weights after both modules; the host's average untouched where neither works."""
        clients = list(reports.sample_counts)
        weights = host_weights(reports)
        extra: dict[int, dict[str, float]] = {client: {} for client in clients}
        if not (self.has(DWM) or self.has(ABM)):
            return Weighting(weights, factors=None, mass=1.0)
        products = inner_products(reports.global_state, reports.local_states)
        if self.has(DWM):
            gains = [self._gain(reports, client) for client in clients]
            apart = [1 - cosine for cosine in cosines(products, [1 / len(clients)] * len(clients))]
            found = dwm_weights(
                list(reports.sample_counts.values()),
                *(spread(gains), spread(apart)),
                *(self.dwm_gamma, self.dwm_beta, self.dwm_kappa),
            )
            weights = dict(zip(clients, found, strict=True))
            for client, gain, one in zip(clients, gains, apart, strict=True):
                extra[client] |= {"dwm_disparity": one, **({"dwm_gain": gain} if self.dwm_beta else {})}
        if self.has(ABM):
            agreement = cosines(products, list(weights.values()))
            found = abm_weights(list(weights.values()), agreement, self.abm_temperature, self.abm_eta)
            weights = dict(zip(clients, found, strict=True))
            for client, cosine in zip(clients, agreement, strict=True):
                extra[client]["abm_cosine"] = cosine
        return Weighting(weights, factors=weights, mass=math.fsum(weights.values()), extra=extra)

    def _gain(self, reports: ClientReports, client: int) -> float:
        """c_i: the share of the global model's held-out loss that the client took away, at least 0.

        Raises:
            UserError: nobody measured it, as where every held-out row is too long.
        """
        if not self.dwm_beta:
            return 0.0
        blocks = reports.of_global, reports.metrics.get(client, {})
        before, after = (next((found[name].get("loss") for name in LOSSES if name in found), None) for found in blocks)
        if before is None or after is None:
            raise UserError(
                f"--aggregation fedpsf: the held-out loss of client {client} or of the global model is not measured "
                "(held-out rows are longer than --seq_length?); give --dwm_beta 0 to weigh without it."
            )
        return max(0.0, float((before - after) / before)) if before else 0.0


def host_weights(reports: ClientReports) -> dict[int, float]:
    """What the server algorithm weighs by: n_i/n where it is not one of ours."""
    from fedbias_plugin.aggregation.server_optimizer import host_factors

    return host_factors(reports.fed_alg if is_known(reports.fed_alg) else "fedavg", reports.sample_counts)


def spread(values: Sequence[float]) -> list[float]:
    """``values`` min-max to [0, 1]; all 0 where they are equal.

    >>> spread([3.0, 5.0, 4.0]), spread([2.0, 2.0])
    ([0.0, 1.0, 0.5], [0.0, 0.0])
    """
    low, high = min(values), max(values)
    if high - low <= EQUAL * max(1.0, abs(high)):
        return [0.0] * len(values)
    return [(value - low) / (high - low) for value in values]


def dwm_weights(
    rows: Sequence[int],
    gains: Sequence[float],
    apart: Sequence[float],
    gamma: float,
    beta: float,
    kappa: float,
) -> list[float]:
    """``u_i / sum u`` with ``u_i = n_i^gamma (1 + beta c_i) (1 + kappa d_i)``; our choice.

    Args:
        rows: n_i.
        gains: c_i in [0, 1], share of the loss taken away.
        apart: d_i in [0, 1], distance from the uniform mean's direction.
        gamma, beta, kappa: see the flags.

    >>> [round(21 * w, 6) for w in dwm_weights([100, 400, 900], [0, 1, 0.5], [1, 0, 0], 0.5, 1, 1)]
    [4.0, 8.0, 9.0]
    """
    raw = [n**gamma * (1 + beta * c) * (1 + kappa * d) for n, c, d in zip(rows, gains, apart, strict=True)]
    total = math.fsum(raw)
    return [one / total for one in raw]


def abm_weights(weights: Sequence[float], agreement: Sequence[float], temperature: float, eta: float) -> list[float]:
    """``(1 - eta) w + eta softmax(agreement / temperature)``; our choice.

    >>> [round(w, 4) for w in abm_weights([0.75, 0.25], [0.9487, 0.3162], 1.0, 0.5)]
    [0.7015, 0.2985]
    """
    most = max(agreement)
    raised = [math.exp((one - most) / temperature) for one in agreement]
    total = math.fsum(raised)
    return [(1 - eta) * w + eta * one / total for w, one in zip(weights, raised, strict=True)]


def cosines(products: NDArray[Any], weights: Sequence[float]) -> list[float]:
    """``cos(D_i, sum_j w_j D_j)`` of every client, in [-1, 1]; 0 where one of the two is zero.

    Args:
        products: inner products of the updates D_i, shape (clients, clients).
        weights: w_j.
    """
    import numpy as np

    w = np.asarray(weights)
    with_mean = products @ w
    squares, of_mean = np.diag(products), float(w @ with_mean)
    scale = float(np.abs(w) @ np.sqrt(squares)) ** 2  # what the mean would be if all agreed: below its rounding is zero
    if of_mean <= EQUAL * scale:
        return [0.0] * len(w)
    norms = np.sqrt(squares * of_mean)
    found = np.divide(with_mean, norms, out=np.zeros_like(with_mean), where=norms > 0)
    return [float(one) for one in found.clip(-1, 1)]


def inner_products(global_state: State, local_states: Mapping[int, State]) -> NDArray[Any]:
    """``<D_i, D_j>`` of the clients' updates, shape (C, C), float64, rows in the order of the mapping.

    Raises:
        ValueError: a client's state lacks a tensor or has another shape (client and name are given).
    """
    import torch

    from fedbias_plugin.aggregation.substitution import stacked

    total = torch.zeros(len(local_states), len(local_states), dtype=torch.float64)
    for theta, rows in stacked(global_state, local_states):
        updates = rows - theta
        total += (updates @ updates.T).cpu()
    return total.numpy()
