"""How much each client counts: the contract of an aggregation rule.

A rule turns what is known of a round into weights; ``substitution`` averages by them, for every server algorithm alike.
Only a rule without weights (a median of every coordinate) makes the state itself. A new rule is one file beside this
one and its name in the registry. Importing a rule's file imports no torch: its flags are read for every ``--help``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.aggregation.weight_warnings import weight_warning
from fedbias_plugin.errors import UserError
from fedbias_plugin.extension import Extension

if TYPE_CHECKING:
    from fedbias_plugin.metrics.base import Block
    from fedbias_plugin.metrics.suite import Measurement
    from fedbias_plugin.state import State
    from fedbias_plugin.tracking.records import RoundRecord
    from fedbias_plugin.updates.base import Update


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
        metrics: client id -> metric -> block (``Metric.block``) on the probe items; empty when nobody measured.
        item_scores: client id -> metric -> per-item scores on the probe items, the same items for every client.
        of_global: metric -> block of theta, of what the rule compares clients with (:attr:`Rule.compares`).
        theta_scores: metric -> per-item scores of theta on the probe items; empty without :attr:`Rule.reads_theta`.
        own_scores: ``client_loss``, ``client_accuracy`` -> client id -> value of theta on that client's own test rows,
            of every client of the run; empty without ``--client_test_fraction`` (:attr:`Rule.reads_own`).
        learning_rates: client id -> learning rate with which it began the round, where it is known.
    """

    fed_alg: str
    sample_counts: Mapping[int, int]
    bias_scores: Mapping[int, float]
    global_state: State
    local_states: Mapping[int, State]
    update_norms: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, Block]] = field(default_factory=dict)
    item_scores: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    of_global: Mapping[str, Block] = field(default_factory=dict)
    theta_scores: Mapping[str, Any] = field(default_factory=dict)
    own_scores: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    learning_rates: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        updates: Mapping[int, Update],
        global_state: State,
        fed_alg: str,
        of_global: Measurement | None = None,
        own_scores: Mapping[str, Mapping[int, float]] | None = None,
    ) -> ClientReports:
        """The reports that ``updates``, by client id, make."""
        measured = {client: update.measured for client, update in updates.items() if update.measured}
        scores = {client: one.bias_score for client, one in measured.items()}
        return cls(
            fed_alg,
            sample_counts={client: update.rows for client, update in updates.items()},
            bias_scores={client: score for client, score in scores.items() if score is not None},
            global_state=global_state,
            local_states={client: update.state for client, update in updates.items()},
            update_norms={client: update.norm for client, update in updates.items() if update.norm is not None},
            metrics={client: one.metrics for client, one in measured.items()},
            item_scores={client: one.item_scores for client, one in measured.items()},
            of_global=of_global.metrics if of_global else {},
            theta_scores=of_global.item_scores if of_global else {},
            own_scores=own_scores or {},
            learning_rates={c: update.learning_rate for c, update in updates.items() if update.learning_rate},
        )

    def own(self, metric: str) -> dict[int, float]:
        """Client id -> theta's value on the client's own test rows, for all clients of the round.

        Raises:
            ValueError: it is not known of a client, or no number.
        """
        found = self.own_scores.get(metric, {})
        missing = sorted(c for c in self.sample_counts if not math.isfinite(found.get(c, math.nan)))
        if missing:
            raise ValueError(f"Nobody measured {metric} of the global model for client(s) {missing}.")
        return {client: found[client] for client in self.sample_counts}


@dataclass(frozen=True)
class Weighting:
    """What a rule decides.

    Attributes:
        weights: client id -> w_i; they sum to 1 and say how much each client counts. Empty where no number says that,
            as for a median of every coordinate.
        factors: client id -> g_i with theta' = theta + sum_i g_i (theta_i - theta), or None when the host's own
            average is to stand untouched, bit for bit. Where all are 0 the global model stays as it was.
        mass: sum of the factors in effect; below 1 the server step is shorter than a mean of the updates. None when
            the server algorithm is one this package does not know, or there are no factors.
        state: the state to hand to the host for every client, where it is no sum of weighted updates; ``factors`` is
            None then. Any average of identical states returns it (see ``substitution``).
        alone: whether the host averages ``state`` as that of one client with one row, since noise covers nothing else:
            a mean of equal states is rounded by who sent them and by their rows, which its bits tell.
        extra: client id -> further numbers of it in this round, by name, to be recorded.
        of_round: further numbers of the round, by name, to be recorded.
    """

    weights: dict[int, float]
    factors: dict[int, float] | None
    mass: float | None
    state: State | None = None
    alone: bool = False
    extra: dict[int, dict[str, float]] = field(default_factory=dict)
    of_round: dict[str, float] = field(default_factory=dict)

    @classmethod
    def by_weights(cls, weights: dict[int, float], reports: ClientReports) -> Weighting:
        """``theta' = theta + sum_i w_i (theta_i - theta)``; untouched, bit for bit, where w are the host's own factors.

        Args:
            weights: client id -> w_i, which sum to 1, for the clients of ``reports``.
            reports: of the round.
        """
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        host = host_factors(reports.fed_alg, reports.sample_counts)
        unchanged = all(math.isclose(weights[client], host[client], rel_tol=1e-12) for client in weights)
        return cls(weights, None if unchanged else dict(weights), mass=1.0)


@dataclass
class Rule(Extension):
    """Turns the reports of a round into a :class:`Weighting`; chosen by ``--aggregation NAME``.

    Attributes:
        needs: what must be measured of every client before it can weigh: ``"bias"`` for bias scores, or the names of
            metrics.
        reads_own: what it reads of theta on the clients' own test rows (``client_loss``, ``client_accuracy``), in
            ``ClientReports.own_scores``; a property where its flags decide. A run that does not measure it is refused.
        is_sum: whether the new state is a sum of weighted updates, as :attr:`Weighting.factors` say.
        compares_half: whether clients are measured by :attr:`compares` on half of the items alone (the metric's
            ``compared``), so that the other half is a test.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    reads_own: ClassVar[frozenset[str]] = frozenset()
    is_sum: ClassVar[bool] = True
    compares_half: ClassVar[bool] = False

    @property
    def compares(self) -> tuple[str, ...]:
        """Metrics, of which the first that the run has is measured of every client and of theta on the same items."""
        return ()

    @property
    def reads_theta(self) -> bool:
        """Whether theta is to be measured before the clients of this round are weighed; a measurement more."""
        return bool(self.compares)

    def after(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """See the per-item scores of the new global model on the probe items (metric -> scores); none where a round is
        not measured. Called after every round, and after round 0; what it gives is recorded with the round."""
        return {}

    def check(self, clients_a_round: int) -> None:  # most rules work with any number of clients
        """Raise :class:`UserError` when the rule cannot work with so many clients a round; called before training."""

    @abstractmethod
    def weigh(self, reports: ClientReports) -> Weighting:
        """Weights and factors for exactly the clients in ``reports.sample_counts``."""

    def sensitivity(self, clients: int) -> float:
        """How far one of ``clients`` a round can move the sum of :meth:`weigh_bounded`, per longest update.

        Raises:
            UserError: its weights have no bound, so that noise cannot hide a client (``--dp_unit client``).
        """
        raise UserError(
            f"--dp_unit client hides a client by noise on a mean, and --aggregation {self.name} has no bound on what "
            "one client moves; give --aggregation plain, or bama with --bama_bias_range."
        )

    def weigh_bounded(self, reports: ClientReports, clients: int) -> Weighting:
        """As :meth:`weigh`, by factors that :meth:`sensitivity` holds for, of a round that asked ``clients``.

        Up to their common denominator, a factor depends on that client alone; who sent nothing has a place in it. There
        may be nobody in ``reports``.
        """
        raise NotImplementedError

    def client_mu(self, client: int, mu: float, clients_a_round: int) -> float:
        """The mu that a client trains FedProx with in the round to come, where ``mu`` is ``--prox_mu``."""
        return mu

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """What a reader of a round must know of this rule's weights; ``alpha`` is that of eq. 1."""
        return list(weight_warning(record))
