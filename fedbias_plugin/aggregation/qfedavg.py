"""q-FedAvg (Li et al. 2020, "Fair Resource Allocation in Federated Learning", arXiv:1905.10497, algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.tracking.records import RoundRecord

LEAST_LOSS = 1e-10
"""A loss below it counts as this: F^(q-1) has no value at 0."""
SHORT_STEP = 0.1
"""A mass below it is told of: the global model makes less than a tenth of the mean's step."""


def q_factors(
    losses: Mapping[int, float], norms: Mapping[int, float], q: float, lipschitz: float
) -> tuple[dict[int, float], dict[int, float]]:
    """Weights and factors of algorithm 2.

    With ``Delta_k = L (w - w_k)`` and ``h_k = q F_k^(q-1) ||Delta_k||^2 + L F_k^q`` it makes
    ``w' = w - sum_k F_k^q Delta_k / sum_k h_k``, which is ``w + sum_k g_k (w_k - w)`` with
    ``g_k = L F_k^q / sum_j h_j``. With q = 0 all are 1/C. The weights are the factors over their sum.

    >>> weights, factors = q_factors({0: 1.0, 1: 3.0}, {0: 1.0, 1: 2.0}, q=1.0, lipschitz=2.0)
    >>> weights, factors  # h = 4 + 2, 16 + 6
    ({0: 0.25, 1: 0.75}, {0: 0.07142857142857142, 1: 0.21428571428571427})

    Args:
        losses: client id -> F_k(w), nats per token.
        norms: client id -> L2 norm of w_k - w.
        q: at least 0; how much clients with a large loss count beyond the others.
        lipschitz: L, above 0.
    """
    floored = {client: max(loss, LEAST_LOSS) for client, loss in losses.items()}
    powers = {client: loss**q for client, loss in floored.items()}
    h = [q * floored[c] ** (q - 1) * (lipschitz * norms[c]) ** 2 + lipschitz * powers[c] for c in floored]
    total, sum_h = math.fsum(powers.values()), math.fsum(h)
    factors = {client: lipschitz * power / sum_h for client, power in powers.items()}
    return {client: power / total for client, power in powers.items()}, factors


@dataclass
class QFedAvg(Rule):
    """Counts a client by ``F_k^q``, its loss before the round, and shortens the step by what the losses are curved.

    F_k is the global model's loss on the client's own test rows, which it never trains on; the paper's is that of all
    its rows. As published all clients count alike but for F_k: sample counts are not used.
    """

    reads_own: ClassVar[frozenset[str]] = frozenset({"client_loss"})

    qfedavg_q: float = option(
        1.0, "q of q-FedAvg: 0 is the uniform mean, more of it gives clients with a large loss more weight", at_least=0
    )
    qfedavg_lipschitz: float | None = option(
        None,
        "L of q-FedAvg, a bound on how fast the loss's gradient changes; without it 1 / the round's learning rate, as "
        "in the paper",
        above=0,
    )

    def weigh(self, reports: ClientReports) -> Weighting:
        """The factors of :func:`q_factors`; their sum, the mass, is below 1 but for q = 0.

        Raises:
            ValueError: a client has no loss or no update norm.
            UserError: L was not given, and no learning rate is known.
        """
        missing = sorted(set(reports.sample_counts) - set(reports.update_norms))
        if missing:
            raise ValueError(f"q-FedAvg has no update norm for client(s) {missing}.")
        losses = reports.own("client_loss")
        weights, factors = q_factors(losses, reports.update_norms, self.qfedavg_q, self._lipschitz(reports))
        if self.qfedavg_q == 0:
            return Weighting.by_weights(weights, reports)
        return Weighting(weights, factors, math.fsum(factors.values()))

    def _lipschitz(self, reports: ClientReports) -> float:
        if self.qfedavg_lipschitz is not None:
            return self.qfedavg_lipschitz
        rates = [reports.learning_rates[client] for client in reports.sample_counts if client in reports.learning_rates]
        if not rates:
            raise UserError(
                "--aggregation qfedavg takes L = 1 / learning rate, and nobody said with which one the clients "
                "trained: give --qfedavg_lipschitz."
            )
        return 1 / max(rates)

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Whether L leaves next to nothing of the step, beside every rule's."""
        return [*super().warnings(record, alpha), *_short_step(record.aggregation_mass)]


def _short_step(mass: float | None) -> Iterator[str]:
    if mass is not None and 0 < mass < SHORT_STEP:
        yield (
            f"short step: q-FedAvg makes {100 * mass:.2g}% of the mean's step. Its L is meant for SGD; after Adam's "
            "steps 1 / learning rate is far too much. Lower --qfedavg_lipschitz."
        )
