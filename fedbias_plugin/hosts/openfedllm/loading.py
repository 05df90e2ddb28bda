"""Loads the model, draws its adapter and places it, as OpenFedLLM means it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from accelerate import PartialState

PLACED = ("hf_device_map", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")


class AutoModelForCausalLM(transformers.AutoModelForCausalLM):
    """Takes the place of Transformers' class in a patched script."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', but ``torch_dtype=None`` means float32, as it did when the host was written.

        In Transformers 5 None means the checkpoint's own dtype, such as bfloat16.
        """
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype") or torch.float32
        return super().from_pretrained(*args, **kwargs)


def seeded_adapter(get_peft_model: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """``get_peft_model`` that draws the adapter's initial weights from ``seed``, leaving the random state alone."""

    def get_seeded_peft_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return get_peft_model(model, *args, **kwargs)

    return get_seeded_peft_model


def on_training_device(model: Any) -> Any:
    """``model`` where the Trainer would put it, unless it was placed when it was loaded.

    The host takes its global state, moments and control variates from a model that its first trainer has yet to move:
    with a GPU, they would lie on the CPU and the clients' states would not.
    """
    return model if any(getattr(model, name, False) for name in PLACED) else model.to(PartialState().device)
