"""Leaves no trace of a client's training but its weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.training.random_states import preserved_random_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_is_frozen = False
"""Whether :func:`frozen_heap` is at work."""


@contextmanager
def training_mode(model: PreTrainedModel, gradient_checkpointing: bool) -> Iterator[None]:
    """Restore the model's mode, ``use_cache``, checkpointing and ``forward``, and the random states, after training."""
    base: Any = model.get_base_model() if hasattr(model, "peft_config") else model
    was_training, use_cache = model.training, base.config.use_cache
    try:
        with preserved_random_states(), frozen_heap(), preserved_forward(model, base):
            yield
    finally:
        if gradient_checkpointing:
            disable = getattr(base, "activation_checkpointing_disable", None) or base.gradient_checkpointing_disable
            disable()
            base.disable_input_require_grads()  # Transformers' own hook for adapters outlives its checkpointing
        base.config.use_cache = use_cache
        model.zero_grad(set_to_none=True)
        model.train(was_training)


@contextmanager
def preserved_forward(*modules: torch.nn.Module) -> Iterator[None]:
    """Put the modules' ``forward`` back.

    Mixed precision and trl wrap it once more for every Trainer; a thousand clients would overflow the stack.
    """
    forwards = {module: module.__dict__.get("forward") for module in modules}
    try:
        yield
    finally:
        for module, forward in forwards.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep the garbage collector off everything that exists already.

    The Trainer collects garbage once a run; over the libraries' many objects that takes longer than training a tiny
    client.
    """
    global _is_frozen
    if _is_frozen:  # gc.get_freeze_count() walks through all of them
        yield
        return
    _is_frozen = True
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        _is_frozen = False
