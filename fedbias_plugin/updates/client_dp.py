"""Differential privacy of clients as a whole: clipped updates, and Gaussian noise on their mean (docs/privacy.md)."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import is_known, local_client
from fedbias_plugin.options import option
from fedbias_plugin.registry import build, load
from fedbias_plugin.training.accounting import gaussian_epsilon, gaussian_sigma
from fedbias_plugin.training.dp import ON, PrivacyFlags
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.state import State

logger = logging.getLogger(__name__)

NOT_COVERED = (
    "client privacy: epsilon covers the global model of every round and what is measured of it on other rows than the "
    "clients'. What these records and manifest.json say of single clients (rows, share of biased rows, training loss, "
    "update norm, scores, loss and accuracy on own test rows, raw b_i, weight, refusal) or sum up of them (effective "
    "clients, mass, weight on poisoned, mean and gaps over clients) is not covered: do not publish it"
)
NO_PROMISE = "client privacy: --dp_noise_multiplier 0 clips updates, adds no noise and promises nothing"


@dataclass
class ClientDp(PrivacyFlags, Stage):
    """``theta + sum_i g_i D_i min(1, S / ||D_i||) + N(0, (sigma s S)^2 I)`` is what the server algorithm averages.

    After McMahan et al. 2018 (arXiv:1710.06963), with every round planned and counted. g_i are the rule's bounded
    factors and s its sensitivity (:meth:`Rule.sensitivity`). The noise joins before the server's momentum and moments,
    which only process what is released. Every update is clipped before it is scored, so that a score is of what counts.

    Attributes:
        sigma: noise multiplier.
        released: rounds whose mean has been released.
        last: the last of them, from 1.
    """

    dp_update_norm: float = option(
        1.0,
        "S: with --dp_unit client, the norm that an update is clipped to",
        above=0,
        read_with=ON,
        read_when={"dp_unit": ("client",)},
    )
    released: int = 0
    last: int = 0
    order: ClassVar[int] = 200

    @property
    def is_on(self) -> bool:
        """With a budget, or with noise given, and for clients."""
        return self.is_asked and self.dp_unit == "client"

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        """Find the noise, and say what is spent.

        Raises:
            UserError: the rule has no bound, or another part of the run would tell of a client past the noise.
        """
        self.check_asked()
        rule: Rule = build("rule", arguments.aggregation, arguments)
        self.clients = 1 if local_client(run.fed_alg) is not None else run.sample_clients
        self.rounds = run.num_rounds
        self.sensitivity = rule.sensitivity(self.clients)
        _check_releases(run.fed_alg, rule)
        self.delta = self.dp_delta or min(1e-5, 1 / (10 * run.num_clients))
        if self.dp_epsilon is not None:
            self.sigma = gaussian_sigma(self.dp_epsilon, self.rounds, self.delta)
        else:
            self.sigma = self.dp_noise_multiplier or 0.0
        self._seed = f"{run.seed}/{arguments.schedule_seed}/client dp noise"
        logger.info(
            "privacy of clients as a whole: %d round%s planned, %d client%s a round, updates clipped to %g, one moves "
            "the mean by at most %.4g, sigma %g, noise %.4g an entry: %s",
            *(self.rounds, "s" * (self.rounds > 1), self.clients, "s" * (self.clients > 1)),
            *(self.dp_update_norm, self.sensitivity * self.dp_update_norm),
            *(self.sigma, self.deviation, self._promise()),
        )

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise on an entry of the mean."""
        return self.sigma * self.sensitivity * self.dp_update_norm

    @property
    def warnings(self) -> list[str]:
        """Which published numbers the promise does not cover."""
        return [NOT_COVERED if self.sigma else NO_PROMISE]

    def _promise(self) -> str:
        if not self.sigma:
            return "no promise"
        return f"epsilon {gaussian_epsilon(self.sigma, self.rounds, self.delta):.4g} at delta {self.delta:.3g}"

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Clip, and record what is spent when this round's mean is out.

        Raises:
            UserError: the round is not one of those that were planned, or was released before.
        """
        from fedbias_plugin.aggregation.substitution import weighted_state

        if number <= self.last or self.released >= self.rounds or len(updates) > self.clients:
            raise UserError(
                f"Round {number} with {len(updates)} clients is not one of the {self.rounds} rounds of {self.clients} "
                "clients that --dp_unit client has planned: it would spend more than was promised."
            )
        spent = {"dp_sigma": self.sigma, "dp_noise": self.deviation}
        if self.sigma:
            epsilon = gaussian_epsilon(self.sigma, self.released + 1, self.delta)
            spent |= {"dp_epsilon": epsilon, "dp_epsilon_max": epsilon, "dp_delta": self.delta}
        for client, update in updates.items():
            update.extra |= spent
            if update.fault is None and update.norm is not None:
                kept = _kept(update.norm, self.dp_update_norm)
                update.extra["dp_update_kept"] = kept
                if kept < 1:
                    updates[client] = dataclasses.replace(
                        update, state=weighted_state(theta, {client: update.state}, {client: kept})
                    )

    def on_weights(self, weighting: Weighting, rule: Rule, reports: ClientReports, number: int) -> Weighting:
        """The noisy mean, also of a round without a good update: that there was none must not be told."""
        from fedbias_plugin.aggregation.substitution import weighted_state
        from fedbias_plugin.updates.checks import update_norm

        bounded = rule.weigh_bounded(reports, self.clients)
        assert bounded.factors is not None, "bounded factors are given"
        # Once more: in half precision what was clipped is longer by the rounding.
        factors = {
            client: factor * _kept(update_norm(reports.global_state, reports.local_states[client]), self.dp_update_norm)
            for client, factor in bounded.factors.items()
            if factor
        }
        self.released, self.last = self.released + 1, number
        mean = weighted_state(reports.global_state, reports.local_states, factors, self._noise(number))
        return dataclasses.replace(bounded, factors=None, state=mean, alone=True)

    def _noise(self, number: int) -> Any:
        """Adds the noise of a round, piece by piece: seeded by run and round, so that a resumed run repeats it."""
        import torch

        draws = torch.Generator().manual_seed(random.Random(f"{self._seed}/{number}").getrandbits(63))

        def add(piece: torch.Tensor) -> None:
            if self.deviation:
                piece.add_(torch.randn(piece.shape, generator=draws).to(piece), alpha=self.deviation)

        return add

    def state_dict(self) -> dict[str, Any]:
        """What was released."""
        return {"released": self.released, "last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.released, self.last = state["released"], state["last"]


def _kept(norm: float, longest: float) -> float:
    """Share of an update that is left when it is clipped."""
    return longest / norm if norm > longest else 1.0


def _check_releases(fed_alg: str, rule: Rule) -> None:
    """Refuse what would carry a client's data to the others or to the server beside the noisy mean.

    Raises:
        UserError: naming it.
    """
    if not is_known(fed_alg):
        raise UserError(f"--dp_unit client does not know what the server makes of the mean under --fed_alg {fed_alg}.")
    broadcast = () if local_client(fed_alg) is not None else load("algorithm", fed_alg).broadcast_names
    if broadcast:
        raise UserError(
            f"--dp_unit client: under --fed_alg {fed_alg} clients send a second thing ({broadcast[0]}), which nobody "
            "clips and no noise covers; give another --fed_alg, such as fedavg."
        )
    if fed_alg == "fedprox" and type(rule).client_mu is not Rule.client_mu:
        raise UserError(
            f"--dp_unit client: under --fed_alg fedprox and --aggregation {rule.name} a client trains with a mu that "
            "was made of the others' data (eq. 6), past the noise; give --fed_alg fedavg or --aggregation plain."
        )
