"""The Trainer of one client and the two terms that algorithms add to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from fedbias_plugin.state import State
from fedbias_plugin.training.encoding import IGNORED


def use_one_gpu(arguments: TrainingArguments) -> None:
    """With several GPUs in sight the Trainer would copy the model to each and multiply the batch by their number."""
    assert arguments.device is not None  # asking for the device is what counts the GPUs
    arguments._n_gpu = 1


class ProximalTerm:
    """FedProx's ``mu/2 ||theta - theta_t||^2`` over the trainable parameters (Li et al. 2020, arXiv:1812.06127, eq. 2).

    Args:
        parameters: name -> live parameter; those without gradient do not count.
        global_state: theta_t, the same names.
        mu: strength.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], global_state: State, mu: float) -> None:
        self.mu = mu
        self.pairs = [
            (parameter, global_state[name].to(parameter.device))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]

    def add_to(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` plus the term, added tensor by tensor as OpenFedLLM does."""
        for parameter, reference in self.pairs:
            loss = loss + self.mu / 2 * torch.linalg.vector_norm(parameter - reference) ** 2
        return loss


class ControlCorrection(TrainerCallback):
    """SCAFFOLD's step ``theta -= lr (c - c_i)`` after every optimizer step (Karimireddy et al. 2020, eq. 3).

    The paper corrects the gradient; with AdamW, OpenFedLLM applies the correction to the parameters instead.

    Args:
        parameters: name -> live parameter.
        correction: ``c - c_i``, the same names.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], correction: State) -> None:
        self.pairs = [(parameter, correction[name].to(parameter.device)) for name, parameter in parameters.items()]

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after each optimizer step."""
        for parameter, correction in self.pairs:
            parameter.sub_(args.learning_rate * correction)


class AfterStep(TrainerCallback):
    """Calls ``function`` after every optimizer step."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after each optimizer step."""
        self.function()


class ClientTrainer(Trainer):
    """:class:`transformers.Trainer` with the loss that OpenFedLLM's stack has.

    Every micro-batch's mean loss counts the same in an optimizer step. The Trainer's newer habit, a mean over all
    tokens of the step, is switched off: it would weigh micro-batches by their length and add FedProx's term once for
    each.

    Args:
        proximal: FedProx's term, added to every micro-batch.
        kwargs: the Trainer's own arguments.
    """

    def __init__(self, *, proximal: ProximalTerm | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.proximal = proximal

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the micro-batch's trainable tokens, plus the proximal term."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if not (inputs["labels"][:, 1:] != IGNORED).any():
            # The mean over no token is not a number; it stands for no loss and no gradient.
            loss = outputs["logits"][..., 0].float().sum() * 0.0
        if self.proximal is not None:
            loss = self.proximal.add_to(loss)
        return (loss, outputs) if return_outputs else loss
