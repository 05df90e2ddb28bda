"""Differential privacy of a client's rows: clipped gradients of single units, Gaussian noise, Adam or SGD."""

from __future__ import annotations

import importlib.util
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.training.accounting import ACCOUNTANTS, epsilon_of, sigma_for
from fedbias_plugin.training.base import ClientRound, LocalTraining, Term

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from fedbias_plugin.training.client_trainer import TrainingSettings
    from fedbias_plugin.training.per_example import PerExample
    from fedbias_plugin.training.per_prompt import PerPrompt

logger = logging.getLogger(__name__)

ON = ("dp_epsilon", "dp_noise_multiplier")
"""The flags that switch privacy on."""
OF_ROWS = {"dp_unit": ("example",)}


class Plan(NamedTuple):
    """What a client does over the whole run.

    Attributes:
        rate: q, the probability of each unit to be in a step.
        size: q n_i, units that a step has on average.
        local_steps: of a round.
        steps: planned, of all rounds.
        delta: of the promise.
        sigma: noise multiplier.
        epsilon: that all planned steps cost; None without noise.
    """

    rate: float
    size: int
    local_steps: int
    steps: int
    delta: float
    sigma: float
    epsilon: float | None


@dataclass
class PrivacyFlags:
    """What switches privacy on, and for whom."""

    dp_epsilon: float | None = option(
        None,
        "differential privacy: epsilon that may be spent in the whole run, by each client or (--dp_unit client) by all",
        above=0,
    )
    dp_noise_multiplier: float | None = option(
        None, "sigma of the noise instead of --dp_epsilon; 0 clips without noise, and promises nothing", at_least=0
    )

    dp_unit: str = option(
        "example",
        "what nobody can tell was there: example, a row of a client, by noise in its training; or client, all that it "
        "holds, by noise on the server's mean",
        choices=("example", "client"),
        read_with=ON,
    )
    dp_delta: float | None = option(
        None,
        "delta of the promise; when absent 1/(2 n_i), with --dp_unit client 1e-5 (1/(10 clients) if that is less)",
        above=0,
        at_most=0.5,
        read_with=ON,
    )

    @property
    def is_on(self) -> bool:
        """With a budget, or with noise given, and for rows."""
        return self.is_asked and self.dp_unit == "example"

    @property
    def is_asked(self) -> bool:
        """With a budget, or with noise given, for rows or clients."""
        return self.dp_epsilon is not None or self.dp_noise_multiplier is not None

    def check_asked(self) -> str:
        """The flag that asks for it.

        Raises:
            UserError: both do.
        """
        if self.dp_epsilon is not None and self.dp_noise_multiplier is not None:
            raise UserError("--dp_epsilon chooses the noise and --dp_noise_multiplier is the noise; give one.")
        return "--dp_noise_multiplier" if self.dp_epsilon is None else "--dp_epsilon"


@dataclass
class Private(PrivacyFlags, Term):
    """DP-SGD or DP-Adam on every client (Abadi et al. 2016, arXiv:1607.00133, Algorithm 1; docs/privacy.md).

    ``g = (sum_i g_i min(1, C / ||g_i||) + N(0, sigma^2 C^2 I)) / (q n_i)`` over a Poisson sample of the client's n_i
    units at rate q, g_i over all trained parameters as one vector. A unit is a row, or a row and its copies, of the
    mean of their losses. What other terms add to the loss joins g after the noise: it must not look at rows. A client's
    steps are counted by the schedule, so that a refused or lost update has cost what was released, and a resumed run or
    another node needs no memory of it.
    """

    dp_max_grad_norm: float = option(
        0.1, "C: the norm that the gradient of a row is clipped to", above=0, read_with=ON, read_when=OF_ROWS
    )
    dp_optimizer: str = option(
        "adam", "what takes the noisy gradients", choices=("adam", "sgd"), read_with=ON, read_when=OF_ROWS
    )
    dp_accountant: str = option(
        "prv",
        "how epsilon is added up: prv (tighter) or rdp, an upper bound; with --dp_unit client it is exact",
        choices=ACCOUNTANTS,
        read_with=ON,
        read_when=OF_ROWS,
    )
    trains = True

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Refuse what breaks per-row gradients or the promise, and a missing Opacus."""
        flag = self.check_asked()
        if flags.get("bf16"):
            raise UserError(f"{flag} needs the gradients of single rows in 32 bits; drop --bf16.")
        if flags.get("load_in_8bit"):  # its outlier columns are those of the whole batch
            raise UserError(f"{flag}: in 8 bits a row's gradient depends on the rows beside it; give --load_in_4bit.")
        if importlib.util.find_spec("opacus") is None:
            raise UserError(f"{flag} needs Opacus, which is not installed: pip install 'fedbias_plugin[privacy]'.")

    def plan(self, model: PreTrainedModel, settings: TrainingSettings, units: Mapping[int, Sequence[int]]) -> None:
        """Say what every client is going to spend."""
        from fedbias_plugin.training.per_example import check_fits

        check_fits(model)
        groups: dict[tuple[Plan, str], list[int]] = {}
        for client, held in sorted(units.items()):
            n = len(set(held))
            unit = "row" if n == len(held) else f"of {n} units (a row with its copies)"
            groups.setdefault((self.plan_of(client, n, settings), unit), []).append(client)
            if self.dp_delta is not None and self.dp_delta * n >= 1:
                logger.warning("--dp_delta %g promises nothing to the %d rows of client %d.", self.dp_delta, n, client)
        for (plan, unit), clients in groups.items():
            named = f"client{'s'[: len(clients) - 1]} {', '.join(map(str, clients))}"
            spent = "no promise" if plan.epsilon is None else f"epsilon {plan.epsilon:.4g} at delta {plan.delta:.3g}"
            logger.info(
                "privacy of %s: %d steps planned (%d a round), each %s in a step with probability %.4g, sigma %g: %s",
                *(named, plan.steps, plan.local_steps, unit, plan.rate, plan.sigma, spent),
            )

    def plan_of(self, client: int, n: int, settings: TrainingSettings) -> Plan:
        """What ``client`` with ``n`` units does; the search for its noise takes seconds, once in a process."""
        size = min(settings.batch_size * settings.gradient_accumulation_steps, n)
        local_steps, delta = settings.steps_of(n), self.dp_delta or 1 / (2 * n)
        steps = settings.rounds_of(client) * local_steps
        cost = size / n, steps, delta
        sigma = self.dp_noise_multiplier
        if sigma is None:
            assert self.dp_epsilon is not None, "a term that is on has a budget or noise"
            sigma = sigma_for(self.dp_accountant, self.dp_epsilon, *cost) if steps else 0.0
        epsilon = epsilon_of(self.dp_accountant, sigma, *cost) if sigma or not steps else None
        return Plan(size / n, size, local_steps, steps, delta, sigma, epsilon)

    def train(self, job: ClientRound, local: LocalTraining) -> tuple[int, float | None]:
        """The steps of a round; loss and gradient norms are of the units that were drawn.

        Raises:
            UserError: the round is not one of the client's, or the model has no gradients of single rows.
        """
        import torch

        from fedbias_plugin.training.per_prompt import gradients_of_rows

        settings, units = local.settings, rows_of_units(local)
        plan = self.plan_of(job.client, len(units), settings)
        before, after = (settings.rounds_of(job.client, job.round_idx + more) * plan.local_steps for more in (0, 1))
        if after == before or after > plan.steps:
            raise UserError(
                f"Client {job.client} is not planned to train in round {job.round_idx + 1}: it would spend more than "
                "was promised."
            )
        torch.manual_seed(settings.seed_of(job.round_idx, job.client))  # of dropout
        draws = generators(settings, job, next(local.model.parameters()).device)
        local.model.train()
        optimizer = self._optimizer(list(local.parameters.values()), job.learning_rate)
        losses, norms = [], []
        with gradients_of_rows(local.model, local.parameters, settings.gradient_checkpointing) as gradients:
            for done in range(before, after):
                assert done < plan.steps, "no step beyond the plan"
                drawn = (torch.rand(len(units), generator=draws.rows) < plan.rate).nonzero().flatten().tolist()
                rows = [units[index] for index in drawn]
                total, of_units = self._noisy(gradients, local, rows, draws.noise, plan)
                self._set_gradients(local, total)
                optimizer.step()
                local.after_step(job.learning_rate)
                losses += of_units[0]
                norms += of_units[1]
        losses, norms = (list(filter(math.isfinite, found)) for found in (losses, norms))  # or one row has it refused
        self._record(job, plan, after, norms)
        return plan.local_steps, sum(losses) / len(losses) if losses else None

    def _noisy(
        self,
        gradients: PerExample | PerPrompt,
        local: LocalTraining,
        drawn: Sequence[Sequence[int]],
        noise: torch.Generator,
        plan: Plan,
    ) -> tuple[list[torch.Tensor], tuple[list[float], list[float]]]:
        """The noisy gradient of a step, for every parameter; losses and norms of the units ``drawn``, lists of rows.

        At most ``--batch_size`` rows, or one unit, go through the model at once. A step without any is noise alone; it
        counts.
        """
        import torch

        from fedbias_plugin.training.per_example import passes

        parameters = list(local.parameters.values())
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        losses: list[float] = []
        norms: list[float] = []
        for units in passes(drawn, local.settings.batch_size):
            rows = [local.features[index] for unit in units for index in unit]
            found = gradients.clipped_sum(local.collate(rows), list(map(len, units)), self.dp_max_grad_norm)
            total = [one + more for one, more in zip(total, found.gradients, strict=True)]
            losses += found.losses.tolist()
            norms += found.norms.tolist()
        scale = plan.sigma * self.dp_max_grad_norm
        for one in total:
            if scale:
                one += scale * torch.randn(one.shape, generator=noise, device=one.device)
            one /= plan.size
        return total, (losses, norms)

    def _set_gradients(self, local: LocalTraining, total: Sequence[torch.Tensor]) -> None:
        """The noisy gradient, and that of what other terms add to a loss of nothing."""
        import torch

        parameters = list(local.parameters.values())
        added = local.add_to_loss(torch.zeros((), device=parameters[0].device))
        own: Sequence[torch.Tensor | None] = [None] * len(parameters)
        if added.requires_grad:
            own = torch.autograd.grad(added, parameters, allow_unused=True)
        for parameter, noisy, of_terms in zip(parameters, total, own, strict=True):
            parameter.grad = noisy.to(parameter.dtype)
            if of_terms is not None:
                parameter.grad += of_terms

    def _optimizer(self, parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
        import torch

        if self.dp_optimizer == "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate)
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)

    def _record(self, job: ClientRound, plan: Plan, steps: int, norms: Sequence[float]) -> None:
        """What the client has spent after so many ``steps``, and what clipping did."""
        job.extra["dp_sigma"] = plan.sigma
        if plan.sigma:
            job.extra["dp_epsilon"] = epsilon_of(self.dp_accountant, plan.sigma, plan.rate, steps, plan.delta)
            job.extra["dp_delta"] = plan.delta
        if norms:
            job.extra["dp_clipped"] = sum(norm > self.dp_max_grad_norm for norm in norms) / len(norms)
            job.extra["dp_gradient_norm"] = sum(norms) / len(norms)


def rows_of_units(local: LocalTraining) -> list[list[int]]:
    """The numbers of the rows of every unit of a client."""
    rows: dict[int, list[int]] = {}
    for index, unit in enumerate(range(len(local.features)) if local.units is None else local.units):
        rows.setdefault(unit, []).append(index)
    return list(rows.values())


class Draws(NamedTuple):
    """The generators of a client's round: which units a step takes (on the CPU), and the noise."""

    rows: torch.Generator
    noise: torch.Generator


def generators(settings: TrainingSettings, job: ClientRound, device: torch.device) -> Draws:
    """Seeded by run, round and client: the same call gives the same bytes, so that a round may be repeated."""
    import torch

    made = []
    for purpose, place in (("rows", torch.device("cpu")), ("noise", device)):
        text = f"{settings.seed}/{settings.schedule_seed}/dp {purpose}/{job.round_idx}/{job.client}"
        made.append(torch.Generator(place).manual_seed(random.Random(text).getrandbits(63)))
    return Draws(*made)
