"""Gradients of every row of a batch with respect to a soft prompt: every row reads a copy of its own."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.soft_prompts import behind_prompt, soft_prompt
from fedbias_plugin.training.per_example import (
    ClippedSum,
    PerExample,
    check_fits,
    clipped_sum,
    means,
    packed_rows,
    row_losses,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def gradients_of_rows(
    model: PreTrainedModel, parameters: dict[str, torch.nn.Parameter], checkpointing: bool
) -> PerExample | PerPrompt:
    """What gives the gradients of single rows of ``model``; the arguments are those of both classes."""
    kind = PerExample if soft_prompt(model) is None else PerPrompt
    return kind(model, parameters, checkpointing)


class PerPrompt:
    """As :class:`fedbias_plugin.training.per_example.PerExample`, without Opacus' hooks.

    They see one embedding of the batch and not one of each row, and would clip the batch as if it were a row. The
    copies are leaves of the graph, so that a backward pass leaves a row's gradient in each.

    Args:
        model: behind a soft prompt, in training mode.
        parameters: what is trained: the prompt.
        checkpointing: recompute activations. Within ``training_mode``, which switches it off again.

    Raises:
        UserError: the rows have no gradients of their own, or something else is trained.
    """

    def __init__(self, model: PreTrainedModel, parameters: dict[str, torch.nn.Parameter], checkpointing: bool) -> None:
        check_fits(model)
        self.model, self.checkpointing = model, checkpointing
        self._prompt = soft_prompt(model)
        self._base: Any = model.get_base_model()
        trained = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
        if not trained == [id(self._prompt)] == [id(parameter) for parameter in parameters.values()]:
            raise UserError("What the optimizer is to train is not what requires gradients in the model.")

    def __enter__(self) -> PerPrompt:
        if self.checkpointing:
            enable = getattr(self._base, "activation_checkpointing_enable", self._base.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left: the copies are gone with their batch."""

    def clipped_sum(self, batch: dict[str, torch.Tensor], sizes: Sequence[int], bound: float) -> ClippedSum:
        """Forward and backward over a batch of units of privacy, with so many rows each, beside each other.

        The loss of a unit is the mean of its rows' losses.

        Raises:
            UserError: the batch has packed rows.
        """
        assert self._prompt is not None, "checked when it was made"
        ids, mask, labels = (batch[name].to(self._prompt.device) for name in ("input_ids", "attention_mask", "labels"))
        rows, before = packed_rows(ids, sizes), len(self._prompt)
        copies = self._prompt.detach().expand(rows, -1, -1).clone().requires_grad_()
        embedded = behind_prompt(self.model, ids, copies)
        mask = torch.cat([torch.ones_like(mask[:, :1]).expand(-1, before), mask], dim=1)
        logits = self._base(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[:, before:]
        losses = row_losses(logits, labels)
        (gradients,) = torch.autograd.grad(losses.sum(), [copies])
        total, norms = clipped_sum([means(gradients, sizes)], bound)
        return ClippedSum(total, norms, means(losses.detach(), sizes))
