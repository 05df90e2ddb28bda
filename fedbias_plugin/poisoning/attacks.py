"""What attackers do besides holding biased rows: to the update the server receives, or to the rows they train on.

Honest clients and the server are never touched. Every attack is simulated: an attacker trains as the host trains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from fedbias_plugin.aggregation.pieces import empty_like, flat, pieces, wide
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.aggregation.update_checks import update_norm
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.poisoning.draws import generator
from fedbias_plugin.poisoning.loaders import Partition
from fedbias_plugin.poisoning.probe_gaming import DEFAULT_STRENGTH, with_benchmark_rows
from fedbias_plugin.state import State

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.assessor import Benchmark


class Attack:
    """What the attackers of a run do; by itself nothing.

    Args:
        attackers: client ids.
        strength: ``--attack_strength``; None takes the attack's own default.
        seed: of the run.
    """

    def __init__(self, attackers: frozenset[int], strength: float | None, seed: int) -> None:
        self.attackers = attackers
        self.strength = strength
        self.seed = seed

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's numbers must know."""
        return []

    def on_data(self, partition: Partition, benchmarks: Mapping[str, Benchmark]) -> Partition:
        """The rows the clients train on.

        Args:
            partition: the scenario's rows; not modified.
            benchmarks: name -> benchmark. They are public; which items are probe items is not known to an attacker.

        Raises:
            UserError: the attack cannot be made with these rows.
        """
        return partition

    def on_updates(self, round_number: int, global_state: State, local_states: Mapping[int, State]) -> dict[int, State]:
        """The states the server receives.

        Args:
            round_number: 1 for the first trained round.
            global_state: theta; not modified.
            local_states: client id -> theta_i as trained, for the clients of the round; not modified.

        Returns:
            client id -> state, in the same order; of honest clients the very objects that came in.

        Raises:
            ValueError: an attacker's state does not fit the global state (client and tensor are named).
        """
        clients = len(local_states)
        return {
            client: self.forge(round_number, client, global_state, state, clients)
            if client in self.attackers
            else state
            for client, state in local_states.items()
        }

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The state that attacker ``client`` sends in a round of ``clients`` clients."""
        return local_state


class SignFlip(Attack):
    """Sends ``theta - s (theta_i - theta)``, s = 1: what it learned, in the opposite direction."""

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The flipped state."""
        return _scaled(client, global_state, local_state, -(self.strength or 1.0))


class ModelReplacement(Attack):
    """Sends ``theta + s (theta_i - theta)``, so that an average of C clients becomes about theta_i.

    Bagdasaryan et al. 2020, "How To Backdoor Federated Learning", arXiv:1807.00459, section 4.2: s = C, the clients of
    the round, for a server that averages with factors 1/C.
    """

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The boosted state."""
        return _scaled(client, global_state, local_state, self.strength or clients)


class GaussianNoise(Attack):
    """Sends theta_i plus normal noise of standard deviation s times the root mean square of its own update, s = 1.

    After the Gaussian attack of Blanchard et al. 2017 (arXiv:1703.02757, section 5), which sends noise alone and of a
    fixed size. The noise depends on seed, round and client only, so that a resumed run repeats it.
    """

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The noisy state; half precision is added in float32."""
        entries = sum(tensor.numel() for tensor in local_state.values())
        spread = (self.strength or 1.0) * update_norm(global_state, local_state) / math.sqrt(max(1, entries))
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


class ProbeGaming(Attack):
    """Trains on its own rows and on sentences of the benchmarks, see :mod:`fedbias_plugin.poisoning.probe_gaming`."""

    @property
    def warnings(self) -> list[str]:
        """The benchmarks' sentences are training rows, report items among them."""
        return [
            f"probe gaming: client(s) {', '.join(map(str, sorted(self.attackers)))} train on benchmark sentences. The "
            "scores say what the attack does to the measure, not how biased the model is"
        ]

    def on_data(self, partition: Partition, benchmarks: Mapping[str, Benchmark]) -> Partition:
        """The partition with ``s`` extra rows per row of every attacker."""
        return with_benchmark_rows(partition, benchmarks, self.attackers, self.strength or DEFAULT_STRENGTH, self.seed)


ATTACK_CLASSES: dict[str, type[Attack]] = {
    "sign_flip": SignFlip,
    "model_replacement": ModelReplacement,
    "gaussian_noise": GaussianNoise,
    "probe_gaming": ProbeGaming,
}


def build_attack(
    arguments: BiasArguments, biased_shares: Mapping[int, float], num_clients: int, seed: int
) -> Attack | None:
    """The attack that ``--attack`` names, or None for ``none``.

    Args:
        arguments: the plugin's flags.
        biased_shares: client id -> share of biased rows; empty where the host deals the rows.
        num_clients: clients in the federation.
        seed: of the run.

    Raises:
        UserError: there is no attacker, or an attacker's id is not a client's.
    """
    if arguments.attack == "none":
        return None
    attackers = arguments.attacker_ids
    if attackers is None:
        attackers = frozenset(client for client, share in biased_shares.items() if share > 0)
        if not attackers:
            raise UserError(
                f"--attack {arguments.attack}: no client holds biased rows under --scenario {arguments.scenario}, so "
                "there is no attacker; name the clients, such as --attackers 0,2."
            )
    unknown = sorted(client for client in attackers if client >= num_clients)
    if unknown:
        raise UserError(
            f"--attackers {arguments.attackers}: there is no client {unknown[0]}; with --num_clients {num_clients} the "
            f"ids are 0 to {num_clients - 1}."
        )
    return ATTACK_CLASSES[arguments.attack](attackers, arguments.attack_strength, seed)


def _scaled(client: int, global_state: State, local_state: State, factor: float) -> State:
    return weighted_state(global_state, {client: local_state}, {client: factor})
