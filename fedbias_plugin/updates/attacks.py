"""What attackers do besides holding biased rows: to the update the server receives, or to the rows they train on.

Honest clients and the server are never touched. Every attack is simulated: an attacker trains as the host trains it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.state import State

logger = logging.getLogger(__name__)


@dataclass
class Attack(Stage):
    """What the attackers of a run do; by itself nothing.

    Attributes:
        ids: the attackers, once the run is prepared.
        seed: of the run.
    """

    attack_strength: float | None = option(
        None,
        "size s of the attack: a factor of the update, noise or extra rows, as docs/attacks.md says of each; by "
        "default the attack's own",
        above=0,
    )
    ids: frozenset[int] = frozenset()
    seed: int = 0

    @property
    def attackers(self) -> frozenset[int]:
        """The clients of ``--attackers``, else those that hold biased rows."""
        return self.ids

    def check(self, arguments: BiasArguments) -> None:
        """Refuse flags that the attack cannot work with, before anything is read.

        Raises:
            UserError: ``--attackers`` is no list of ids.
        """
        arguments.attacker_ids  # noqa: B018  # reading it tells

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        """Find the attackers.

        Raises:
            UserError: there is none, or an attacker's id is not a client's.
        """
        given = arguments.attacker_ids
        self.seed = run.seed
        self.ids = frozenset(client for client, share in shares.items() if share > 0) if given is None else given
        if not self.ids:
            raise UserError(
                f"--attack {arguments.attack}: no client holds biased rows under --scenario {arguments.scenario}, so "
                "there is no attacker; name the clients, such as --attackers 0,2."
            )
        unknown = sorted(client for client in self.ids if client >= run.num_clients)
        if unknown:
            raise UserError(
                f"--attackers {arguments.attackers}: there is no client {unknown[0]}; with --num_clients "
                f"{run.num_clients} the ids are 0 to {run.num_clients - 1}."
            )
        logger.info("attackers (%s): %s", arguments.attack, ", ".join(map(str, sorted(self.ids))))

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """What the client sends; of an honest one the very object that came in.

        Raises:
            ValueError: an attacker's state does not fit the global state (client and tensor are named).
        """
        if update.client not in self.ids:
            return update
        return replace(update, state=self.forge(number, update.client, theta, update.state, clients))

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The state that attacker ``client`` sends in a round of ``clients`` clients."""
        return local_state


@dataclass
class SignFlip(Attack):
    """Sends ``theta - s (theta_i - theta)``, s = 1: what it learned, in the opposite direction."""

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The flipped state."""
        return scaled(client, global_state, local_state, -(self.attack_strength or 1.0))


@dataclass
class ModelReplacement(Attack):
    """Sends ``theta + s (theta_i - theta)``, so that an average of C clients becomes about theta_i.

    Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", arXiv:1807.00459, section 4.2: s = C, the clients of
    the round, for a server that averages with factors 1/C.
    """

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The boosted state."""
        return scaled(client, global_state, local_state, self.attack_strength or clients)


@dataclass
class GaussianNoise(Attack):
    """Sends theta_i plus normal noise of standard deviation s times the root mean square of its own update, s = 1.

    After the Gaussian attack of Blanchard et al. 2017 (arXiv:1703.02757, section 5), which sends noise alone and of a
    fixed size. The noise depends on seed, round and client only, so that a resumed run repeats it.
    """

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The noisy state; half precision is added in float32."""
        import torch

        from fedbias_plugin.aggregation.pieces import empty_like, flat, pieces, wide
        from fedbias_plugin.data.draws import generator
        from fedbias_plugin.updates.checks import update_norm

        entries = sum(tensor.numel() for tensor in local_state.values())
        spread = (self.attack_strength or 1.0) * update_norm(global_state, local_state) / math.sqrt(max(1, entries))
        draw = generator(f"noise of client {client} in round {round_number}", self.seed)
        noise = torch.Generator().manual_seed(int(draw.random() * 2**53))
        result: State = {}
        for name, tensor in local_state.items():
            new = empty_like(tensor)
            for piece in pieces(new):
                exact = wide(flat(tensor)[piece])
                drawn = torch.randn(exact.shape, generator=noise).to(exact)
                flat(new)[piece] = exact + drawn.mul_(spread)
            result[name] = new
        return result


def scaled(client: int, global_state: State, local_state: State, factor: float) -> State:
    """``theta + factor (theta_i - theta)``."""
    from fedbias_plugin.aggregation.substitution import weighted_state

    return weighted_state(global_state, {client: local_state}, {client: factor})
