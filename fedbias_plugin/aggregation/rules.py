"""How much each client counts: the contract of an aggregation rule, and the registry.

A rule turns what is known of a round into weights; ``substitution`` averages by them, for every server algorithm alike.
Only a rule without weights (a median of every coordinate) makes the state itself. A new rule is one file beside this
one and one line in :func:`build_rule`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedbias_plugin.aggregation.server_optimizers import host_factors
from fedbias_plugin.algorithms import is_known
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.state import State


@dataclass(frozen=True)
class ClientReports:
    """What the server knows of the clients of one round when it weighs them.

    Attributes:
        fed_alg: the server algorithm that will average (``fedavg``, ``fedadam``, ...).
        sample_counts: client id -> n_i, for exactly the clients of this round.
        bias_scores: client id -> b_i in percentage points (eq. 1); empty when nobody measured.
        global_state: theta, before aggregation.
        local_states: client id -> theta_i.
        update_norms: client id -> L2 norm of theta_i - theta; empty when nobody measured.
    """

    fed_alg: str
    sample_counts: Mapping[int, int]
    bias_scores: Mapping[int, float]
    global_state: State
    local_states: Mapping[int, State]
    update_norms: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Weighting:
    """What a rule decides.

    Attributes:
        weights: client id -> w_i; they sum to 1 and say how much each client counts. Empty where no number says that,
            as for a median of every coordinate.
        factors: client id -> g_i with theta' = theta + sum_i g_i (theta_i - theta), or None when the host's own
            average is to stand untouched, bit for bit.
        mass: sum of the factors in effect; below 1 the server step is shorter than a mean of the updates. None when
            the server algorithm is one this package does not know, or there are no factors.
        state: the state to hand to the host for every client, where it is no sum of weighted updates; ``factors`` is
            None then. Any average of identical states returns it (see ``substitution``).
    """

    weights: dict[int, float]
    factors: dict[int, float] | None
    mass: float | None
    state: State | None = None


class AggregationRule(ABC):
    """Turns the reports of a round into a :class:`Weighting`."""

    needs_bias_scores: bool = False

    def check(self, clients_a_round: int) -> None:  # noqa: B027  # most rules work with any number of clients
        """Raise :class:`UserError` when the rule cannot work with so many clients a round; called before training."""

    @abstractmethod
    def weigh(self, reports: ClientReports) -> Weighting:
        """Weights and factors for exactly the clients in ``reports.sample_counts``."""


class HostRule(AggregationRule):
    """The server algorithm's own weighting: n_i/n, or 1/C for FedAdagrad, FedYogi and FedAdam."""

    def weigh(self, reports: ClientReports) -> Weighting:
        """The host's factors as weights; nothing is substituted. An algorithm of the host's own has no weights here."""
        if not is_known(reports.fed_alg):
            return Weighting({}, factors=None, mass=None)
        return Weighting(host_factors(reports.fed_alg, reports.sample_counts), factors=None, mass=1.0)


def build_rule(arguments: BiasArguments) -> AggregationRule:
    """The rule that ``--aggregation`` names."""
    from fedbias_plugin.aggregation.bama import BamaRule
    from fedbias_plugin.aggregation.krum import KrumRule, MultiKrumRule
    from fedbias_plugin.aggregation.median import MedianRule
    from fedbias_plugin.aggregation.norm_clip import NormClipRule
    from fedbias_plugin.aggregation.trimmed_mean import TrimmedMeanRule

    rules = {
        "host": HostRule,
        "bama": lambda: BamaRule(lambda_=arguments.bama_lambda, weighting=arguments.bama_weighting),
        "median": MedianRule,
        "trimmed_mean": lambda: TrimmedMeanRule(arguments.byzantine_clients),
        "krum": lambda: KrumRule(arguments.byzantine_clients),
        "multi_krum": lambda: MultiKrumRule(arguments.byzantine_clients),
        "norm_clip": lambda: NormClipRule(arguments.clip_norm),
    }
    return rules[arguments.aggregation]()
