"""BAMA, Bias-Aware Model Aggregation.

Source: Zhao et al., "Investigating Social Bias Propagation in Federated Fine-tuning of Large Language Models", eq. 2
to 6. Eq. 1 (the bias score) is :func:`fedbias_plugin.metrics.results.bias_score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.aggregation.ability import ABILITIES, GATED, KEY, abilities, ability_warnings, probe_ability
from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.aggregation.weight_warnings import lambda_warnings, weight_warning
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.tracking.records import RoundRecord

# Eq. 4 and 5 put D = sum_i w_i D_i, without sample counts, into the moments; the same D feeds the other algorithms that
# keep a momentum or second moment of the mean delta.
DELTA_ALGORITHMS = frozenset({"fedavgm", "fedadagrad", "fedyogi", "fedadam"})


def softmax_weights(bias_scores: Mapping[int, float], lambda_: float) -> dict[int, float]:
    """Eq. 2: ``w_i = exp(-lambda b_i) / sum_j exp(-lambda b_j)``, computed with the largest exponent taken out.

    Args:
        bias_scores: client id -> b_i, percentage points.
        lambda_: 1/percentage point, greater than 0.

    Raises:
        ValueError: no client, or a bias score that is not finite (named by client).

    >>> {client: round(w, 4) for client, w in softmax_weights({0: 10.0, 1: 5.0}, 0.2).items()}
    {0: 0.2689, 1: 0.7311}
    """
    if not bias_scores:
        raise ValueError("BAMA was asked to weigh a round without clients.")
    for client, score in bias_scores.items():
        if not math.isfinite(score):
            raise ValueError(f"The bias score of client {client} is {score}; BAMA cannot weigh it.")
    least = min(bias_scores.values())
    exponentials = {client: math.exp(-lambda_ * (score - least)) for client, score in bias_scores.items()}
    total = math.fsum(exponentials.values())
    return {client: value / total for client, value in exponentials.items()}


def paper_factors(fed_alg: str, weights: Mapping[int, float], sample_counts: Mapping[int, int]) -> dict[int, float]:
    """Eq. 3 to 5 to the letter: ``w_i n_i/n`` for averaged models, ``w_i`` for algorithms that average deltas.

    With C clients of equal size the first sum to 1/C: the literal equation also shortens the step C-fold.
    """
    if fed_alg in DELTA_ALGORITHMS:
        return dict(weights)
    total = sum(sample_counts.values())
    return {client: weight * sample_counts[client] / total for client, weight in weights.items()}


def normalized_factors(
    fed_alg: str, weights: Mapping[int, float], sample_counts: Mapping[int, int]
) -> dict[int, float]:
    """``w_i h_i / sum_j w_j h_j`` with h the host's own factors: lambda -> 0 is the host's algorithm unchanged."""
    from fedbias_plugin.aggregation.server_optimizer import host_factors

    host = host_factors(fed_alg, sample_counts)
    total = math.fsum(weights[client] * host[client] for client in weights)
    return {client: weight * host[client] / total for client, weight in weights.items()}


WEIGHTINGS = {"normalized": normalized_factors, "paper": paper_factors}


@dataclass
class Bama(Rule):
    """Weights clients by ``exp(-lambda b_i)``.

    Attributes:
        last_weights: client id -> w_i of the last round in which the client was weighed.
        last_global: metric -> block of the global model when it was last measured, on the probe items.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"bias"})

    bama_lambda: float = option(
        0.2, "lambda of eq. 2 per percentage point: a client 1/lambda points worse weighs 1/e", above=0
    )
    bama_weighting: str = option(
        "normalized",
        "eq. 3 to the letter (paper) or with factors that sum to 1 (normalized)",
        choices=tuple(WEIGHTINGS),
    )
    bama_bias_range: float | None = option(
        None,
        "B, percentage points: b_i is taken as no more, so that no weight is over e^(lambda B) times another; "
        "--dp_unit client needs it",
        above=0,
    )
    bama_min_ability: float | None = option(
        None,
        "share of the global model's LMS (without StereoSet: of its held-out loss) that a client must keep to have a "
        "weight, such as 0.9; a coin has LMS 50. No limit when absent",
        above=0,
        at_most=1,
    )
    last_weights: dict[int, float] = field(default_factory=dict)
    last_global: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def compares(self) -> tuple[str, ...]:
        """What ability is taken from, where it is asked for."""
        return tuple(ABILITIES) if self.bama_min_ability is not None else ()

    def weigh(self, reports: ClientReports) -> Weighting:
        """Eq. 2 and the factors of eq. 3 to 5; ``factors`` is None where they are the host's own, bit for bit.

        Who lacks ability has weight 0; where all do, all factors are 0.

        Raises:
            ValueError: a client of the round has no bias score, or one that is not finite; or no ability is known.
        """
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        scores, extra = self._able(reports)
        if not scores:
            return Weighting({}, dict.fromkeys(reports.sample_counts, 0.0), 0.0, extra=extra)
        weights = dict.fromkeys(reports.sample_counts, 0.0) | softmax_weights(scores, self.bama_lambda)
        self.last_weights.update(weights)
        factors = WEIGHTINGS[self.bama_weighting](reports.fed_alg, weights, reports.sample_counts)
        host = host_factors(reports.fed_alg, reports.sample_counts)
        unchanged = all(math.isclose(factors[client], host[client], rel_tol=1e-12) for client in factors)
        return Weighting(weights, None if unchanged else factors, math.fsum(factors.values()), extra=extra)

    def _able(self, reports: ClientReports) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
        """Client id -> b_i, at most B, of those that have the ability; and what is recorded of it."""
        missing = sorted(set(reports.sample_counts) - set(reports.bias_scores))
        if missing:
            raise ValueError(f"BAMA has no bias score for client(s) {missing}.")
        scores = {client: reports.bias_scores[client] for client in reports.sample_counts}
        if self.bama_bias_range is not None:
            scores = {client: min(max(score, 0.0), self.bama_bias_range) for client, score in scores.items()}
        if self.bama_min_ability is None:
            return scores, {}
        shares = abilities(reports)
        gated = {client for client, share in shares.items() if not share >= self.bama_min_ability}  # NaN too
        extra = {client: {KEY: share, **({GATED: 1.0} if client in gated else {})} for client, share in shares.items()}
        return {client: score for client, score in scores.items() if client not in gated}, extra

    def sensitivity(self, clients: int) -> float:
        """``2 w_max``, where ``w_max = 1 / (1 + (C - 1) e^(-lambda B))`` is the largest weight that one may have.

        >>> round(Bama(bama_lambda=math.log(2), bama_bias_range=1.0).sensitivity(10), 6)  # 4/11
        0.363636
        """
        if self.bama_bias_range is None:
            raise UserError(
                "--dp_unit client needs a bound on BAMA's weights, which depend on the clients' data, and b_i as it is "
                "has none that helps: give --bama_bias_range B (percentage points), such as 10."
            )
        return 2 / (1 + (clients - 1) * math.exp(-self.bama_lambda * self.bama_bias_range))

    def weigh_bounded(self, reports: ClientReports, clients: int) -> Weighting:
        """``e_i / sum_j e_j`` with ``e_i = exp(-lambda min(b_i, B))``, without rows.

        A client that sent nothing, was refused or lacks ability stands in the sum with ``exp(-lambda B)`` and adds 0.
        """
        scores, extra = self._able(reports)
        if not scores:
            return Weighting({}, dict.fromkeys(reports.sample_counts, 0.0), 0.0, extra=extra)
        weights = softmax_weights(scores, self.bama_lambda)
        least, most = min(scores.values()), self.bama_bias_range or 0.0
        present = math.fsum(math.exp(-self.bama_lambda * (score - least)) for score in scores.values())
        absent = (clients - len(scores)) * math.exp(-self.bama_lambda * (most - least))
        mass = present / (present + absent)
        nobody = dict.fromkeys(reports.sample_counts, 0.0)
        factors = nobody | {client: weight * mass for client, weight in weights.items()}
        return Weighting(nobody | weights, factors, mass, extra=extra)

    def client_mu(self, client: int, mu: float, clients_a_round: int) -> float:
        """Eq. 6: ``mu w_i``, with the client's last weight, and 1/C (C clients a round) before it has one."""
        return mu * self.last_weights.get(client, 1.0 / clients_a_round)

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Where lambda lets noise decide, or nothing, and who lacks ability (``docs/footguns.md``)."""
        advice = f" Lower --bama_lambda ({self.bama_lambda:g}) to let the others count."
        of_lambda = lambda_warnings(record, alpha, self.bama_lambda)
        of_ability = list(ability_warnings(record, self.bama_min_ability, self.last_global))
        self.last_global = probe_ability(record) or self.last_global
        return [*weight_warning(record, advice), *of_lambda, *of_ability]

    def state_dict(self) -> dict[str, Any]:
        """The last weights, and the ability that a warning compares with."""
        weights = {str(client): weight for client, weight in self.last_weights.items()}
        lms = {name: {"lms": block.get("lms")} for name, block in self.last_global.items()}
        return {"last_weights": weights, "last_global": lms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.last_weights = {int(client): weight for client, weight in state["last_weights"].items()}
        self.last_global = state.get("last_global", {})
