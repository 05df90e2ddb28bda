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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from fedbias_plugin.aggregation.pieces import Buffers
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
class Part:
    """A piece of one tensor as the server sees it in one round: views of the same entries of every state.

    Attributes:
        index: the round, from 0.
        theta: of the global state; not to be written.
        local: client id -> of that client's state; not to be written. Summed in this order.
        sample_counts: client id -> n_i.
        control_deltas: client id -> of its control variate's change (SCAFFOLD), else None.
        slots: slot name -> of what the server remembers; written in place.
        num_clients: all clients of the federation.
        buffers: for results in between.
    """

    index: int
    theta: torch.Tensor
    local: Mapping[int, torch.Tensor]
    sample_counts: Mapping[int, int]
    control_deltas: Mapping[int, torch.Tensor] | None
    slots: Mapping[str, torch.Tensor]
    num_clients: int
    buffers: Buffers

    def at(self, piece: slice) -> Part:
        """The entries of ``piece``, as views."""
        deltas = self.control_deltas
        return Part(
            self.index,
            self.theta[piece],
            {client: tensor[piece] for client, tensor in self.local.items()},
            self.sample_counts,
            None if deltas is None else {client: tensor[piece] for client, tensor in deltas.items()},
            {slot: tensor[piece] for slot, tensor in self.slots.items()},
            self.num_clients,
            self.buffers,
        )

    def weighted_mean(self, total: torch.Tensor) -> None:
        """``sum_i theta_i n_i / n`` into ``total``, multiplied, divided and added in this order, as OpenFedLLM does."""
        self._weighted_sum(iter(self.local.items()), total)

    def weighted_delta(self) -> torch.Tensor:
        """``sum_i D_i n_i / n``, likewise; in a buffer."""
        total = self.buffers.take("delta", self.theta)
        self._weighted_sum(zip(self.local, self._deltas(), strict=True), total)
        return total

    def mean_delta(self) -> torch.Tensor:
        """``sum_i D_i / C``: every client of the round counts the same; in a buffer."""
        deltas = self._deltas()
        total = self.buffers.take("delta", self.theta).copy_(next(deltas))
        for delta in deltas:
            total.add_(delta)
        return total.div_(len(self.local))

    def _deltas(self) -> Iterator[torch.Tensor]:
        """D_i of one client after the other, in one buffer."""
        term = self.buffers.take("term", self.theta)
        return (torch.sub(theta_i, self.theta, out=term) for theta_i in self.local.values())

    def _weighted_sum(self, terms: Iterator[tuple[int, torch.Tensor]], total: torch.Tensor) -> None:
        rows = sum(self.sample_counts[client] for client in self.local)
        total.zero_()
        if total.dtype in (torch.float16, torch.bfloat16):  # in which the number of rows is none
            for client, term in terms:
                total.add_(term * self.sample_counts[client] / rows)
            return
        divisor = torch.tensor(rows, dtype=total.dtype, device=total.device)
        for client, term in terms:
            total.addcdiv_(term, divisor, value=self.sample_counts[client])  # one pass, the same bits


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
                self.slots[slot] = {
                    name: torch.full_like(theta, self.first_value(slot), memory_format=torch.contiguous_format)
                    for name, theta in global_state.items()
                }

    @abstractmethod
    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """Write the next value of ``part.theta``, entry by entry, to ``target``, which may be ``part.theta`` itself.

        ``part.slots`` move on.
        """


class FedAvg(ServerAlgorithm):
    """``theta' = sum_i (n_i / n) theta_i`` (McMahan et al. 2017, arXiv:1602.05629); ``localN`` has one term."""

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """The mean of the clients' models, weighted by rows."""
        part.weighted_mean(target)


class FedProx(FedAvg):
    """The server of FedAvg; the proximal term lives in local training (Li et al. 2020, arXiv:1812.06127)."""


class Scaffold(FedAvg):
    """FedAvg of the models, and ``c' = c + sum_i (c_i' - c_i) / N`` (Karimireddy et al. 2020, arXiv:1910.06378).

    The sum runs over the round's clients, N counts all clients.
    """

    slot_names = ("control_variate",)

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """FedAvg's; the global control variate moves."""
        if part.control_deltas is None:
            raise ValueError("SCAFFOLD needs control_deltas: each client's new control variate minus its old one.")
        first, *others = (part.control_deltas[client] for client in part.local)
        change = part.buffers.take("delta", first).copy_(first)
        for delta in others:
            change.add_(delta)
        part.slots["control_variate"].add_(change.div_(part.num_clients))
        super().write_next(part, target)


class FedAvgM(ServerAlgorithm):
    """Server momentum: ``m = beta1 m + (1 - beta1) sum_i (n_i/n) D_i``, ``theta' = theta + m`` (after Hsu et al. 2019).

    In the first round m is the whole weighted delta.
    """

    slot_names = ("momentum",)

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """Theta moved by the momentum."""
        delta, momentum = part.weighted_delta(), part.slots["momentum"]
        if part.index > 0:
            _decay(momentum, delta, self.settings.beta1)
        else:
            momentum.copy_(delta)
        torch.add(part.theta, momentum, out=target)


class FedOpt(ServerAlgorithm):
    """``theta' = theta + eta m / (sqrt(v) + tau)`` with D the unweighted mean delta; subclasses say how v moves."""

    slot_names = ("momentum", "second_moment")
    sample_weighted = False
    has_momentum: ClassVar[bool] = True

    def first_value(self, slot: str) -> float:
        """m_0 = 0, v_0 = tau^2 unless told otherwise."""
        return self.settings.first_second_moment if slot == "second_moment" else 0.0

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """One step of Algorithm 2."""
        momentum, second = part.slots["momentum"], part.slots["second_moment"]
        published = self.settings.variant == "reddi"
        delta = part.mean_delta()
        whole_delta = not self.has_momentum or (part.index == 0 and not published)
        square = part.buffers.take("square", momentum)
        if published:
            torch.square(delta, out=square)
        if whole_delta:
            momentum.copy_(delta)
        else:
            _decay(momentum, delta, self.settings.beta1)
        if not published:
            torch.square(momentum, out=square)
        step = part.buffers.take("term", momentum)
        self.move_second(second, square, step)
        torch.sqrt(second, out=step).add_(self.settings.tau)
        torch.div(momentum, step, out=step)
        torch.add(step.mul_(self.settings.eta), part.theta, out=target)

    @abstractmethod
    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Take one more ``square`` into the ``second`` moment; ``square`` and ``spare`` may be written over."""


class FedAdagrad(FedOpt):
    """``v = v + D^2``, m = D."""

    has_momentum = False

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """The running sum of squares."""
        second.add_(square)


class FedYogi(FedOpt):
    """``v = v - (1 - beta2) s sign(v - s)`` with s the square."""

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Additive move towards the square."""
        torch.sub(second, square, out=spare).sign_()
        second.sub_(square.mul_(1 - self.settings.beta2).mul_(spare))


class FedAdam(FedOpt):
    """``v = beta2 v + (1 - beta2) s`` with s the square."""

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Exponential mean of the squares."""
        _decay(second, square, self.settings.beta2)


REGISTRY: dict[str, type[ServerAlgorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "fedavgm": FedAvgM,
    "fedadagrad": FedAdagrad,
    "fedyogi": FedYogi,
    "fedadam": FedAdam,
}


def _decay(old: torch.Tensor, new: torch.Tensor, beta: float) -> None:
    """``old = beta old + (1 - beta) new``; ``new`` is written over."""
    old.mul_(beta).add_(new.mul_(1 - beta))
