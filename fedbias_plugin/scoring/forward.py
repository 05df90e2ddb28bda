"""Log-probabilities of one batch: a forward pass with the LM head only where a token is predicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedbias_plugin.scoring.inference import embedding_device
from fedbias_plugin.scoring.prefix_tree import Batch
from fedbias_plugin.scoring.soft_prompts import behind_prompt, soft_prompt

SLICE_LOGITS = {"cpu": 2**21, "cuda": 2**26}
"""Logits that are in float32 at one time: 8 MiB on a CPU, which stay in its cache, 256 MiB on a GPU."""
SLICES_OF_HEAD = 4
"""That many slices go through the head at once in bfloat16, where reading its weight takes longer than multiplying."""
SLICED, HOOKED, WHOLE = "sliced", "hooked", "whole"
"""The ways to apply the LM head, see :func:`batch_log_probs`."""


def batch_log_probs(
    model: Any, batch: Batch, *, trees: bool, head: str, with_likeliest: bool = False
) -> NDArray[np.float64]:
    """Log-probability of every target of ``batch``, float32 log-softmax whatever the model's dtype.

    Args:
        model: a causal LM, in inference mode; a soft prompt of peft's is read once a row, before all its texts.
        batch: what to read and predict.
        trees: give the model the positions and the mask of a prefix tree; without it every row is one plain text.
        head: ``SLICED``: the LM head is applied slice by slice, after the rest of the model, which must do nothing
            to its output (:func:`head_is_last`). ``HOOKED``: the model applies it, to the needed states only.
            ``WHOLE``: the model applies it, in whatever way, to all states.
        with_likeliest: say too whether the target is the token that the model finds likeliest (the first of several).

    Returns:
        Shape (predictions,), natural log, as float64; with ``with_likeliest`` (predictions, 2), the second 1 or 0.
    """
    inputs = model_inputs(model, batch, trees)
    length = batch.ids.shape[1]
    rows, positions = (torch.from_numpy(part) for part in np.divmod(batch.nodes, length))
    if "inputs_embeds" in inputs:
        model, positions = model.get_base_model(), positions + inputs["inputs_embeds"].shape[1] - length
    sources, targets = torch.from_numpy(batch.sources), torch.from_numpy(batch.targets)
    if head == SLICED:
        states, _ = _forward(model, inputs, rows, positions, keep=1)
        return _target_log_probs(states, model.get_output_embeddings(), sources, targets, with_likeliest)
    if head == HOOKED:
        logits = _forward(model, inputs, rows, positions, keep=len(rows))[1][0]
    else:
        logits = _pick(model(**inputs, use_cache=False, return_dict=True).logits, inputs, rows, positions)
    return _target_log_probs(logits, None, sources, targets, with_likeliest)


def model_inputs(model: Any, batch: Batch, trees: bool) -> dict[str, Tensor]:
    """What the forward takes: with ``trees`` an additive mask of shape (rows, 1, length, length).

    With a soft prompt it is that of the base model: ``inputs_embeds``, longer by the prompt, which all nodes see.
    """
    device, prompt = embedding_device(model), soft_prompt(model)
    ids, before = torch.from_numpy(batch.ids).to(device), 0 if prompt is None else len(prompt)
    inputs = {"input_ids": ids} if prompt is None else {"inputs_embeds": behind_prompt(model, ids, prompt)}
    if trees:
        dtype = model.get_input_embeddings().weight.dtype
        lowest = torch.finfo(
            torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
        ).min
        visible = torch.from_numpy(_behind(before, batch.visible)).to(device)
        hidden = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, lowest)
        ahead = np.tile(np.arange(before), (len(ids), 1))
        depths = np.concatenate([ahead, batch.depths + before], axis=1)
        inputs |= {"position_ids": torch.from_numpy(depths).to(device), "attention_mask": hidden[:, None]}
    else:
        real = np.arange(before + batch.ids.shape[1]) < before + batch.sizes[:, None]
        inputs["attention_mask"] = torch.from_numpy(real.astype(np.int64)).to(device)
    return inputs


def _behind(before: int, visible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """``visible`` (rows, length, length) with so many nodes ``before`` that see those ahead and are seen by all."""
    rows, length, _ = visible.shape
    found = np.zeros((rows, before + length, before + length), dtype=np.bool_)
    found[:, :before, :before] = np.tri(before, dtype=np.bool_)
    found[:, before:, :before] = True
    found[:, before:, before:] = visible
    return found


def head_is_last(model: Any, inputs: dict[str, Tensor]) -> bool:
    """Whether the logits are what the LM head gives and nothing else: no soft-capping, no scale.

    Raises:
        ValueError: the head is not called once and as a module of one tensor.
    """
    place = torch.zeros(1, dtype=torch.long)
    model = model.get_base_model() if "inputs_embeds" in inputs else model
    states, logits = _forward(model, inputs, place, place, keep=1)
    return torch.equal(model.get_output_embeddings()(states[None])[0], logits[0])


def _forward(
    model: Any, inputs: dict[str, Tensor], rows: Tensor, positions: Tensor, keep: int
) -> tuple[Tensor, Tensor]:
    """The hidden states that reach the head at the given places, and the logits of the first ``keep`` of them."""
    picked: list[Tensor] = []

    def pick_before_head(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if picked or not given:
            raise ValueError("the LM head is called several times, or by keyword")
        picked.append(_pick(given[0], inputs, rows, positions))
        return (picked[0][None, :keep], *given[1:])

    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        raise ValueError("the model has no LM head module")
    handle = head.register_forward_pre_hook(pick_before_head)
    try:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    finally:
        handle.remove()
    if not picked:
        raise ValueError("the LM head is not called as a module")
    return picked[0], logits


def _pick(tensor: Tensor, inputs: dict[str, Tensor], rows: Tensor, positions: Tensor) -> Tensor:
    # Some adapters put virtual tokens before the text.
    given = inputs["inputs_embeds" if "inputs_embeds" in inputs else "input_ids"]
    offset = tensor.shape[1] - given.shape[1]
    return tensor[rows.to(tensor.device), positions.to(tensor.device) + offset]


def _target_log_probs(
    values: Tensor, head: nn.Module | None, sources: Tensor, targets: Tensor, with_likeliest: bool
) -> NDArray[np.float64]:
    """float32 log-softmax at the targets, a few rows of ``values`` (hidden states; logits without a head) at once."""
    vocabulary = values.shape[-1] if head is None else _outputs(head, values)
    size = max(1, SLICE_LOGITS.get(values.device.type, SLICE_LOGITS["cpu"]) // vocabulary)
    bounds = torch.searchsorted(sources, torch.arange(0, len(values) + size, size)).tolist()
    parts = []
    slices = zip(range(0, len(values), size), bounds, bounds[1:], strict=False)
    for (part, low, high), logits in zip(slices, _logits(values, head, size), strict=True):
        log_probs = torch.log_softmax(logits.float(), dim=-1)
        place = sources[low:high].to(logits.device) - part, targets[low:high].to(logits.device)
        found = log_probs[place]
        if with_likeliest:
            found = torch.stack([found, (log_probs.argmax(-1)[place[0]] == place[1]).to(found.dtype)], dim=-1)
        parts.append(found)
    return torch.cat(parts).double().cpu().numpy()


def _logits(values: Tensor, head: nn.Module | None, size: int) -> Iterator[Tensor]:
    """Of ``size`` rows at a time; in 16 bits the head reads several times as many at once."""
    at_once = size * (SLICES_OF_HEAD if torch.is_autocast_enabled(values.device.type) else 1)
    for rows in values.split(at_once):
        yield from (rows if head is None else head(rows[None])[0]).split(size)


def _outputs(head: nn.Module, states: Tensor) -> int:
    features = getattr(head, "out_features", None)
    return features if isinstance(features, int) else int(head(states[None, :1]).shape[-1])
