"""Gradients of every row of a batch, clipped and summed: Opacus' hooks, and what they would do silently, refused."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.soft_prompts import soft_prompt
from fedbias_plugin.tasks.encoding import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class ClippedSum:
    """What a batch gives.

    Attributes:
        gradients: sum over units of g_i min(1, C / ||g_i||), a tensor for every parameter, in 32 bits or more.
        norms: ||g_i|| of every unit, over all parameters as one vector.
        losses: of every unit.
    """

    gradients: list[torch.Tensor]
    norms: torch.Tensor
    losses: torch.Tensor


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each row's trained tokens, nats, shape (rows,); 0 for a row that has none.

    A row's loss depends on that row alone; a mean over the batch's tokens, the Trainer's, would divide it by what the
    other rows hold.

    Args:
        logits: (rows, tokens, vocabulary); a token's are of the next one.
        labels: (rows, tokens).
    """
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (targets != IGNORED).sum(1).clamp(min=1)


def passes(units: Sequence[Sequence[int]], most: int) -> list[Sequence[Sequence[int]]]:
    """``units`` in parts of nearly the same size with at most so many rows each, or one unit: few, and no crumbs.

    >>> passes([[0], [1, 6], [2], [3]], 3)
    [[[0], [2]], [[1, 6], [3]]]
    """
    for count in range(math.ceil(sum(map(len, units)) / most), len(units)):
        parts = [units[part::count] for part in range(count)]
        if all(sum(map(len, part)) <= most for part in parts):
            return parts
    return [[unit] for unit in units]


def means(values: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """The mean over the rows of every unit, shape (units, ...); ``values`` itself where each row is one.

    Args:
        values: (rows, ...), the rows of a unit beside each other.
        sizes: rows of every unit.

    >>> means(torch.tensor([1.0, 2.0, 6.0]), [1, 2]).tolist()
    [1.0, 4.0]
    """
    if len(sizes) == len(values):
        return values
    return torch.stack([rows.mean(0) for rows in values.split(list(sizes))])


def clipped_sum(gradients: Sequence[torch.Tensor], bound: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    """``sum_i g_i min(1, bound / ||g_i||)`` and the norms; a unit whose norm is not finite adds nothing.

    Args:
        gradients: of every parameter, shape (units, *its shape).
        bound: C.

    >>> total, norms = clipped_sum([torch.tensor([[3.0, 4.0], [0.3, 0.4]])], 1.0)
    >>> [round(float(value), 6) for value in total[0]], [round(float(value), 6) for value in norms]
    ([0.9, 1.2], [5.0, 0.5])
    """
    squares = [part.flatten(1).float().square().sum(1) for part in gradients]
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (bound / norms).clamp(max=1.0)
    if not (finite := torch.isfinite(norms)).all():  # 0 x NaN would be NaN: one unit would be in all of the step
        factors, gradients = factors[finite], [part[finite] for part in gradients]
    return [torch.tensordot(factors, part.float(), 1) for part in gradients], norms


def packed_rows(ids: torch.Tensor, sizes: Sequence[int]) -> int:
    """How many rows the batch ``ids`` has.

    Raises:
        UserError: not those of units of so many rows each.
    """
    rows = sum(sizes)
    if len(ids) != rows:
        raise UserError(
            f"The task made {len(ids)} sequences of {rows} rows: packed rows have no gradients of their own."
        )
    return rows


def check_fits(model: PreTrainedModel) -> None:
    """Refuse a model whose rows have no gradient of their own.

    Raises:
        UserError: saying what is in the way.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{name} is a batch norm, which mixes the rows of a batch: no row has a gradient of its own."
            )
    for adapter in getattr(model, "peft_config", {}).values():
        if adapter.is_prompt_learning and soft_prompt(model) is None:
            raise UserError(
                "What this adapter puts before a text is one for the whole batch: Opacus would clip the batch as if it "
                "were one row. Train a soft prompt (prompt tuning), LoRA adapters or every weight with privacy."
            )
        if getattr(adapter, "use_dora", False):
            raise UserError("DoRA's magnitudes have no gradient for every row in Opacus; train plain LoRA adapters.")


def _hooks(model: PreTrainedModel) -> Any:
    """Opacus' hooks on ``model``, with embeddings as Transformers has them.

    Raises:
        UserError: a layer has buffers, as one that gathers statistics of batches.
    """
    from opacus.grad_sample import GradSampleHooks

    class Hooks(GradSampleHooks):
        GRAD_SAMPLERS = GradSampleHooks.GRAD_SAMPLERS | {
            type(module): _of_embedding
            for module in model.modules()
            if type(module) is torch.nn.Embedding
            or (isinstance(module, torch.nn.Embedding) and hasattr(module, "embed_scale"))
        }

    try:
        return Hooks(model, loss_reduction="sum", strict=False)
    except NotImplementedError as error:
        raise UserError(f"{type(model).__name__} has no gradients of single rows in Opacus: {error}") from error


def _of_embedding(
    layer: Any, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.nn.Parameter, torch.Tensor]:
    """As Opacus', but the padding token has no gradient, and Gemma's embeddings are scaled."""
    ids = activations[0]
    scaled = backprops * getattr(layer, "embed_scale", 1.0)
    found = scaled.new_zeros(len(ids), *layer.weight.shape)
    found.scatter_add_(1, ids.unsqueeze(-1).expand_as(scaled), scaled)
    if layer.padding_idx is not None:
        found[:, layer.padding_idx] = 0
    return {layer.weight: found}


class PerExample:
    """While it is entered, every backward pass through ``model`` leaves the rows' gradients.

    Args:
        model: in training mode.
        parameters: what is trained.
        checkpointing: recompute activations (reentrant: of the other kind the hooks would see every row twice). Within
            ``training_mode``, which switches it off again.

    Raises:
        UserError: see :func:`check_fits`; or the model trains what is not among ``parameters``.
    """

    def __init__(self, model: PreTrainedModel, parameters: dict[str, torch.nn.Parameter], checkpointing: bool) -> None:
        check_fits(model)
        self.model, self.parameters, self.checkpointing = model, parameters, checkpointing
        trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        if trained != {id(parameter) for parameter in parameters.values()}:
            raise UserError("What the optimizer is to train is not what requires gradients in the model.")
        self._base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
        self._takes_positions = "position_ids" in inspect.signature(self._base.forward).parameters

    def __enter__(self) -> PerExample:
        if self.checkpointing:
            base: Any = self._base
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable({"use_reentrant": True})
            embeddings = self.model.get_input_embeddings()
            self._inputs = embeddings.register_forward_hook(lambda layer, given, found: found.requires_grad_(True))
        self._hooks = _hooks(self.model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.cleanup()
        if self.checkpointing:
            self._inputs.remove()
        for module in self.model.modules():
            for name in ("activations", "max_batch_len"):
                module.__dict__.pop(name, None)

    def clipped_sum(self, batch: dict[str, torch.Tensor], sizes: Sequence[int], bound: float) -> ClippedSum:
        """Forward and backward over a batch of units of privacy, with so many rows each, beside each other.

        The loss of a unit is the mean of its rows' losses.

        Raises:
            UserError: the batch has packed rows, or a parameter has no gradient for every row.
        """
        device = next(self.model.parameters()).device
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        labels, shape, rows = inputs.pop("labels"), inputs["input_ids"].shape, packed_rows(inputs["input_ids"], sizes)
        if self._takes_positions:  # left to itself, GPT-2 looks its positions up once for the whole batch
            inputs["position_ids"] = torch.arange(shape[1], device=device).expand(*shape).contiguous()
        losses = row_losses(self.model(**inputs, use_cache=False).logits, labels)
        self._hooks.set_grad_sample_to_none()
        with warnings.catch_warnings():  # torch says that adapters of the first layer have no input with a gradient
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            losses.sum().backward()
        gradients = [means(self._of_rows(*named, rows), sizes) for named in self.parameters.items()]
        total, norms = clipped_sum(gradients, bound)
        self._hooks.set_grad_sample_to_none()
        self.model.zero_grad(set_to_none=True)
        return ClippedSum(total, norms, means(losses.detach(), sizes))

    def _of_rows(self, name: str, parameter: torch.nn.Parameter, rows: int) -> torch.Tensor:
        found = getattr(parameter, "grad_sample", None)
        if not isinstance(found, torch.Tensor) or found.shape != (rows, *parameter.shape):
            raise UserError(
                f"Opacus finds no gradient for every row of {name}: it is used outside of a layer, more than once, or "
                "for the batch as a whole. Train other parameters with differential privacy."
            )
        return found
