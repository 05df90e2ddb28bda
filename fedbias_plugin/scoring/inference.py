"""A forward pass that leaves the model as it was: modes, hooks, caches, autocast and random state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def evaluating(model: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """``eval()`` and inference mode without autocast; every module's own mode and the random state come back.

    With ``gradients`` there is no inference mode, so that a loss can be differentiated.
    Autocast is off because a score is a property of the model, not of the caller's context, and because weights that
    autocast caches under inference mode could not be trained afterwards.
    """
    modes = [(module, module.training) for module in model.modules()]
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    kind = embedding_device(model).type
    try:
        model.eval()
        with (
            torch.random.fork_rng(sorted(device.index or 0 for device in devices)),
            torch.autocast("cuda" if kind == "cuda" else "cpu", enabled=False),
            torch.enable_grad() if gradients else torch.inference_mode(),
            _unpacked_4bit_weights(model),
        ):
            yield
    finally:
        for module, training in modes:
            module.training = training
        torch.clear_autocast_cache()
        _release_inference_tensors(model)


@contextlib.contextmanager
def _unpacked_4bit_weights(model: nn.Module) -> Iterator[None]:
    """Keep bitsandbytes from repacking 4-bit weights on the CPU, for good, at the first forward pass in ``eval()``.

    Packed weights pass no gradient on: a model that was scored once would train without learning, and say nothing.
    """
    flag = "support_avx512bf16_for_cpu"
    packing = [module for module in model.modules() if getattr(module, flag, False)]
    for module in packing:
        setattr(module, flag, False)
    try:
        yield
    finally:
        for module in packing:
            setattr(module, flag, True)


def text_config(model: Any) -> Any:
    """The configuration of the language part, also for models that see images."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def embedding_device(model: Any) -> torch.device:
    """Where token ids go in: the device of the input embedding, also for a model that is spread over devices."""
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    device = model.device if weight is None else weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _release_inference_tensors(model: nn.Module) -> None:
    """Turn tensors that a module made and kept while scoring (rotary tables, masks) into ordinary ones.

    A tensor made in inference mode cannot take part in training; some models cache such tensors in their modules.
    """
    for module in model.modules():
        for store in (module.__dict__, module._buffers):
            for name, value in list(store.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    store[name] = value.clone()
