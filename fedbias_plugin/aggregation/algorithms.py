"""The server algorithms, one small class each; their fields are their flags.

With ``--fedopt_variant openfedllm`` the arithmetic is OpenFedLLM's, operation by operation, so that the two agree bit
for bit in float32. It departs from the papers in two places, both kept: the first round's momentum is the whole mean
delta instead of ``(1 - beta1)`` of it, and FedYogi and FedAdam square the *momentum* in the second moment. ``reddi`` is
FedOpt as published (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2); it differs for FedAdam and FedYogi only:

- FedAdagrad: the paper's experiments set beta1 = 0, as OpenFedLLM does, and then both read the same.
- FedAvgM: not one of Algorithm 2's methods. Hsu et al. (2019, arXiv:1909.06335) accumulate ``v = beta v + D``, without
  the factor ``1 - beta1``; that is OpenFedLLM's with a larger server step and is not offered.

Symbols: theta the global state, theta_i a client's, n_i its rows, ``D_i = theta_i - theta``.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.extension import Extension
from fedbias_plugin.options import option

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.aggregation.pieces import Part
    from fedbias_plugin.state import State


BETA1 = option(0.9, "beta1 of FedYogi and FedAdam, and FedAvgM's momentum", at_least=0, at_most=1, of_host=True)


@dataclass
class ServerAlgorithm(Extension):
    """One server algorithm, chosen by ``--fed_alg NAME``.

    Attributes:
        slot_names: what it remembers between rounds, each a state like theta's.
        broadcast_names: those of them that clients get beside theta.
        sample_weighted: whether a client counts by its rows, or every client the same.
        slots: slot name -> what it remembers now; empty before the first round.
    """

    slot_names: ClassVar[tuple[str, ...]] = ()
    broadcast_names: ClassVar[tuple[str, ...]] = ()
    sample_weighted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.slots: dict[str, State] = {}

    def first_value(self, slot: str) -> float:
        """What every entry of ``slot`` is before the first round."""
        return 0.0

    def prepare(self, global_state: State) -> None:
        """Make the slots before the first round."""
        import torch

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


@dataclass
class FedAvg(ServerAlgorithm):
    """``theta' = sum_i (n_i / n) theta_i`` (McMahan et al. 2017, arXiv:1602.05629); ``localN`` has one term."""

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """The mean of the clients' models, weighted by rows."""
        part.weighted_mean(target)


@dataclass
class FedProx(FedAvg):
    """The server of FedAvg; the proximal term lives in local training (Li et al. 2020, arXiv:1812.06127)."""


@dataclass
class Scaffold(FedAvg):
    """FedAvg of the models, and ``c' = c + sum_i (c_i' - c_i) / N`` (Karimireddy et al. 2020, arXiv:1910.06378).

    The sum runs over the round's clients, N counts all clients.
    """

    slot_names = ("control_variate",)
    broadcast_names = ("control_variate",)

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


@dataclass
class FedAvgM(ServerAlgorithm):
    """Server momentum: ``m = beta1 m + (1 - beta1) sum_i (n_i/n) D_i``, ``theta' = theta + m`` (after Hsu et al. 2019).

    In the first round m is the whole weighted delta.
    """

    fedopt_beta1: float = BETA1
    slot_names = ("momentum",)

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """Theta moved by the momentum."""
        import torch

        delta, momentum = part.weighted_delta(), part.slots["momentum"]
        if part.index > 0:
            _decay(momentum, delta, self.fedopt_beta1)
        else:
            momentum.copy_(delta)
        torch.add(part.theta, momentum, out=target)


@dataclass
class FedOpt(ServerAlgorithm):
    """``theta' = theta + eta m / (sqrt(v) + tau)`` with D the unweighted mean delta; subclasses say how m and v move.

    v starts at ``tau^2`` unless told otherwise, the least that Algorithm 2 allows.
    """

    fedopt_tau: float = option(1e-3, "tau of FedAdagrad, FedYogi and FedAdam", above=0, of_host=True)
    fedopt_eta: float = option(1e-3, "server learning rate of FedAdagrad, FedYogi and FedAdam", above=0, of_host=True)
    fedopt_v0: float | None = option(
        None, "second moment before the first round; tau^2 when absent, 0 as published", at_least=0, of_host=True
    )
    slot_names = ("momentum", "second_moment")
    sample_weighted = False

    def first_value(self, slot: str) -> float:
        """m_0 = 0, v_0 as asked for."""
        if slot != "second_moment":
            return 0.0
        return self.fedopt_tau**2 if self.fedopt_v0 is None else self.fedopt_v0

    def write_next(self, part: Part, target: torch.Tensor) -> None:
        """One step of Algorithm 2."""
        import torch

        momentum, second = part.slots["momentum"], part.slots["second_moment"]
        square, step = (part.buffers.take(name, momentum) for name in ("square", "term"))
        self.move_first(part.index, momentum, part.mean_delta(), square)
        self.move_second(second, square, step)
        torch.sqrt(second, out=step).add_(self.fedopt_tau)
        torch.div(momentum, step, out=step)
        torch.add(step.mul_(self.fedopt_eta), part.theta, out=target)

    @abstractmethod
    def move_first(self, index: int, momentum: torch.Tensor, delta: torch.Tensor, square: torch.Tensor) -> None:
        """Take D of round ``index`` into the momentum, and write what v takes up; ``delta`` may be written over."""

    @abstractmethod
    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Take one more ``square`` into the ``second`` moment; ``square`` and ``spare`` may be written over."""


@dataclass
class FedAdagrad(FedOpt):
    """``v = v + D^2``, m = D."""

    def move_first(self, index: int, momentum: torch.Tensor, delta: torch.Tensor, square: torch.Tensor) -> None:
        """No momentum: D itself."""
        import torch

        torch.square(momentum.copy_(delta), out=square)

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """The running sum of squares."""
        second.add_(square)


@dataclass
class FedOptWithMomentum(FedOpt):
    """``m = beta1 m + (1 - beta1) D``, and the two variants of what is squared."""

    fedopt_beta1: float = BETA1
    fedopt_beta2: float = option(0.99, "beta2 of FedYogi and FedAdam", at_least=0, at_most=1, of_host=True)
    fedopt_variant: str = option(
        "openfedllm",
        "openfedllm (second moment of the momentum) or reddi (of the raw delta, as published)",
        choices=("openfedllm", "reddi"),
        of_host=True,
    )

    def move_first(self, index: int, momentum: torch.Tensor, delta: torch.Tensor, square: torch.Tensor) -> None:
        """As published D is squared, and decays in from the first round on; OpenFedLLM squares the momentum."""
        import torch

        if self.fedopt_variant == "reddi":
            torch.square(delta, out=square)
            _decay(momentum, delta, self.fedopt_beta1)
            return
        if index > 0:
            _decay(momentum, delta, self.fedopt_beta1)
        else:
            momentum.copy_(delta)
        torch.square(momentum, out=square)


@dataclass
class FedYogi(FedOptWithMomentum):
    """``v = v - (1 - beta2) s sign(v - s)`` with s the square."""

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Additive move towards the square."""
        import torch

        torch.sub(second, square, out=spare).sign_()
        second.sub_(square.mul_(1 - self.fedopt_beta2).mul_(spare))


@dataclass
class FedAdam(FedOptWithMomentum):
    """``v = beta2 v + (1 - beta2) s`` with s the square."""

    def move_second(self, second: torch.Tensor, square: torch.Tensor, spare: torch.Tensor) -> None:
        """Exponential mean of the squares."""
        _decay(second, square, self.fedopt_beta2)


def _decay(old: torch.Tensor, new: torch.Tensor, beta: float) -> None:
    """``old = beta old + (1 - beta) new``; ``new`` is written over."""
    old.mul_(beta).add_(new.mul_(1 - beta))
