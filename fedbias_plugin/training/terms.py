"""What FedProx and SCAFFOLD add to a client's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.options import option
from fedbias_plugin.training.base import ClientRound, Term

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.state import State


@dataclass
class Prox(Term):
    """FedProx's ``mu/2 ||theta - theta_t||^2`` over what is trained (Li et al. 2020, arXiv:1812.06127, eq. 2)."""

    prox_mu: float = option(0.01, "mu of FedProx", at_least=0, of_host=True, read_when={"fed_alg": ("fedprox",)})
    algorithms = ("fedprox",)

    def begin(self, job: ClientRound, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Remember theta_t; the mu is the client's own, which a rule may have changed (eq. 6 of BAMA)."""
        self._mu = job.mu
        self._pairs = [(p, job.theta[name].to(p.device)) for name, p in parameters.items() if p.requires_grad]

    def add_to_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` plus the term, added tensor by tensor as OpenFedLLM does."""
        import torch

        for parameter, reference in self._pairs:
            loss = loss + self._mu / 2 * torch.linalg.vector_norm(parameter - reference) ** 2
        return loss

    def finish(self, job: ClientRound, state: State, steps: int) -> None:
        """Let go of theta_t."""
        del self._pairs


@dataclass
class AdapterProx(Prox):
    """``mu ||a - a_0||^2`` over the adapter, a_0 as the round began; its gradient is 2 mu (a - a_0).

    The released code of FedBiOT has this term without a gradient: 0 is what it does.
    """

    def begin(self, job: ClientRound, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Remember a_0."""
        super().begin(job, parameters)
        self._mu = 2 * self.prox_mu


@dataclass
class Scaffold(Term):
    """SCAFFOLD's control variates (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1, option II).

    The paper corrects the gradient; with AdamW, OpenFedLLM corrects the parameters instead, after every step. The
    client keeps its ``control`` c_i, gets the server's ``control_variate`` c and sends ``control_delta``; one that is
    absent is zero.
    """

    algorithms = ("scaffold",)
    sends = ("control_delta",)
    keeps = ("control",)

    def begin(self, job: ClientRound, parameters: dict[str, torch.nn.Parameter]) -> None:
        """The correction ``c - c_i``."""
        c, c_i = job.broadcast.get("control_variate"), job.kept.get("control")
        self._correction = {
            name: _or_zeros(c, name, like) - _or_zeros(c_i, name, like) for name, like in job.theta.items()
        }
        self._pairs = [(p, self._correction[name].to(p.device)) for name, p in parameters.items()]

    def after_step(self, learning_rate: float) -> None:
        """``theta -= lr (c - c_i)``."""
        import torch

        with torch.no_grad():
            for parameter, correction in self._pairs:
                parameter.sub_(learning_rate * correction)

    def finish(self, job: ClientRound, state: State, steps: int) -> None:
        """``c_i' = (theta_t - theta_i) / (K lr) - (c - c_i)``, and ``c_i' - c_i``.

        K are the optimizer steps really done; OpenFedLLM takes ``max_steps``, the same number when it trains by steps.
        """
        size = steps * job.learning_rate
        new = {name: (theta - state[name]) / size - self._correction[name] for name, theta in job.theta.items()}
        old = job.kept.get("control")
        job.keeps["control"] = new
        job.sent["control_delta"] = {name: value - _or_zeros(old, name, value) for name, value in new.items()}
        del self._pairs, self._correction


def _or_zeros(control: State | None, name: str, like: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.zeros_like(like) if control is None else control[name]
