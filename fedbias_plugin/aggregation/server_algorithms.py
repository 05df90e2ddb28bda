"""The server algorithms, one small class each, and their registry.

With ``variant="openfedllm"`` the arithmetic is OpenFedLLM's, operation by operation, so that the two agree bit for bit
in float32. It departs from the papers in two places, both kept: the first round's momentum is the whole mean delta
instead of ``(1 - beta1)`` of it, and FedYogi and FedAdam square the *momentum* in the second moment.
``variant="reddi"`` is FedOpt as published (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2). The variants differ
for FedAdam and FedYogi only:

- FedAdagrad: the paper's experiments set beta1 = 0, as OpenFedLLM does, and then both read the same.
- FedAvgM: not one of Algorithm 2's methods. Hsu et al. (2019, arXiv:1909.06335) accumulate ``v = beta v + D``, without
  the factor ``1 - beta1``; that is OpenFedLLM's with a larger server step and is not offered.

Symbols: theta the global state, theta_i a client's, n_i its rows, ``D_i = theta_i - theta``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedbias_plugin.state import State

VARIANTS = ("openfedllm", "reddi")


@dataclass(frozen=True)
class FedOptSettings:
    """Server hyper-parameters; the defaults are OpenFedLLM's.

    Attributes:
        tau: adaptivity, added to the root of the second moment.
        eta: server learning rate of the adaptive algorithms.
        beta1: decay of the momentum (FedAvgM, FedYogi, FedAdam).
        beta2: decay of the second moment (FedYogi, FedAdam).
        variant: ``openfedllm`` or ``reddi``.
        v_0: second moment before the first round; None stands for ``tau**2``, the least that Algorithm 2 allows.
    """

    tau: float = 1e-3
    eta: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    variant: str = "openfedllm"
    v_0: float | None = None

    @property
    def first_second_moment(self) -> float:
        """``v_0`` as a number."""
        return self.tau**2 if self.v_0 is None else self.v_0


@dataclass(frozen=True)
class ServerRound:
    """One round as the server sees it; clients are in the order in which they are summed."""

    index: int
    global_state: State
    local_states: Mapping[int, State]
    sample_counts: Mapping[int, int]
    control_deltas: Mapping[int, State] | None
    num_clients: int

    def weighted_sum(self, name: str, tensor_of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """``sum_i tensor_of(theta_i) n_i / n`` of one tensor, with one accumulator."""
        total = sum(self.sample_counts[client] for client in self.local_states)
        return _sum(
            tensor_of(state[name]) * self.sample_counts[client] / total for client, state in self.local_states.items()
        )

    def mean_delta(self, name: str) -> torch.Tensor:
        """``sum_i D_i / C`` of one tensor: every client of the round counts the same."""
        theta = self.global_state[name]
        return _sum(state[name] - theta for state in self.local_states.values()) / len(self.local_states)


class ServerAlgorithm(ABC):
    """One server algorithm; ``slots`` holds what it remembers between rounds, slot name -> tensors like theta's."""

    slot_names: ClassVar[tuple[str, ...]] = ()
    sample_weighted: ClassVar[bool] = True

    def __init__(self, settings: FedOptSettings) -> None:
        self.settings = settings
        self.slots: dict[str, State] = {}

    def first_value(self, slot: str) -> float:
        """What every entry of ``slot`` is before the first round."""
        return 0.0

    def prepare(self, global_state: State) -> None:
        """Make the slots before the first round."""
        for slot in self.slot_names:
            if slot not in self.slots:
                value = self.first_value(slot)
                self.slots[slot] = {name: torch.full_like(theta, value) for name, theta in global_state.items()}

    def finish(self, server_round: ServerRound) -> None:  # noqa: B027  # most algorithms have nothing left to do
        """What is left to do when every tensor has its new value."""

    @abstractmethod
    def new_value(self, name: str, server_round: ServerRound) -> torch.Tensor:
        """The next value of the tensor ``name``; slots of that name move on."""


class FedAvg(ServerAlgorithm):
    """``theta' = sum_i (n_i / n) theta_i`` (McMahan et al. 2017, arXiv:1602.05629); ``localN`` has one term."""

    def new_value(self, name: str, server_round: ServerRound) -> torch.Tensor:
        """The mean of the clients' models, weighted by rows."""
        return server_round.weighted_sum(name, lambda theta_i: theta_i)


class FedProx(FedAvg):
    """The server of FedAvg; the proximal term lives in local training (Li et al. 2020, arXiv:1812.06127)."""


class Scaffold(FedAvg):
    """FedAvg of the models, and ``c' = c + sum_i (c_i' - c_i) / N`` (Karimireddy et al. 2020, arXiv:1910.06378).

    The sum runs over the round's clients, N counts all clients.
    """

    slot_names = ("control_variate",)

    def finish(self, server_round: ServerRound) -> None:
        """Move the global control variate."""
        deltas = server_round.control_deltas
        if deltas is None:
            raise ValueError("SCAFFOLD needs control_deltas: each client's new control variate minus its old one.")
        control = self.slots["control_variate"]
        for name, value in control.items():
            total = _sum(deltas[client][name] for client in server_round.local_states)
            control[name] = value + total / server_round.num_clients


class FedAvgM(ServerAlgorithm):
    """Server momentum: ``m = beta1 m + (1 - beta1) sum_i (n_i/n) D_i``, ``theta' = theta + m`` (after Hsu et al. 2019).

    In the first round m is the whole weighted delta.
    """

    slot_names = ("momentum",)

    def new_value(self, name: str, server_round: ServerRound) -> torch.Tensor:
        """Theta moved by the momentum."""
        theta = server_round.global_state[name]
        delta = server_round.weighted_sum(name, lambda theta_i: theta_i - theta)
        momentum = self.slots["momentum"]
        momentum[name] = _decayed(momentum[name], delta, self.settings.beta1) if server_round.index > 0 else delta
        return theta + momentum[name]


class FedOpt(ServerAlgorithm):
    """``theta' = theta + eta m / (sqrt(v) + tau)`` with D the unweighted mean delta; subclasses say how v moves."""

    slot_names = ("momentum", "second_moment")
    sample_weighted = False
    has_momentum: ClassVar[bool] = True

    def first_value(self, slot: str) -> float:
        """m_0 = 0, v_0 = tau^2 unless told otherwise."""
        return self.settings.first_second_moment if slot == "second_moment" else 0.0

    def new_value(self, name: str, server_round: ServerRound) -> torch.Tensor:
        """One step of Algorithm 2 for one tensor."""
        momentum, second = self.slots["momentum"], self.slots["second_moment"]
        published = self.settings.variant == "reddi"
        delta = server_round.mean_delta(name)
        whole_delta = not self.has_momentum or (server_round.index == 0 and not published)
        momentum[name] = delta if whole_delta else _decayed(momentum[name], delta, self.settings.beta1)
        second[name] = self.next_second(second[name], torch.square(delta if published else momentum[name]))
        step = torch.div(momentum[name], torch.sqrt(second[name]) + self.settings.tau)
        return server_round.global_state[name] + self.settings.eta * step

    @abstractmethod
    def next_second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """The second moment after one more square."""


class FedAdagrad(FedOpt):
    """``v = v + D^2``, m = D."""

    has_momentum = False

    def next_second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """The running sum of squares."""
        return second + square


class FedYogi(FedOpt):
    """``v = v - (1 - beta2) s sign(v - s)`` with s the square."""

    def next_second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Additive move towards the square."""
        return second - (1 - self.settings.beta2) * square * torch.sign(second - square)


class FedAdam(FedOpt):
    """``v = beta2 v + (1 - beta2) s`` with s the square."""

    def next_second(self, second: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        """Exponential mean of the squares."""
        return _decayed(second, square, self.settings.beta2)


REGISTRY: dict[str, type[ServerAlgorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedadam": FedAdam,
}


def _sum(tensors: Iterator[torch.Tensor]) -> torch.Tensor:
    """Sum from the left with one accumulator; the first tensor is copied, so that no input is written to."""
    total = next(tensors).clone()
    for tensor in tensors:
        total.add_(tensor)
    return total


def _decayed(old: torch.Tensor, new: torch.Tensor, beta: float) -> torch.Tensor:
    return beta * old + (1 - beta) * new
