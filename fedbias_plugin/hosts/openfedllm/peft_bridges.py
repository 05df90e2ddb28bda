"""peft's functions for the models OpenFedLLM gives them: also without an adapter, when ``--use_peft`` is not given.

They are put in the place of peft's own before the host imports those. For a model with an adapter they are peft's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import peft
import torch
from accelerate import PartialState

from fedbias_plugin.state import State
from fedbias_plugin.training.parameters import live_parameters, write_state
from fedbias_plugin.training.trainables import TARGET_MODULES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLACED = ("hf_device_map", "is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit")

_get_peft_model = peft.get_peft_model
_get_state_dict = peft.get_peft_model_state_dict
_set_state_dict = peft.set_peft_model_state_dict


def install() -> None:
    """Put the three functions in the place of peft's."""
    peft.get_peft_model = get_peft_model
    peft.get_peft_model_state_dict = get_peft_model_state_dict
    peft.set_peft_model_state_dict = set_peft_model_state_dict


def get_peft_model(model: PreTrainedModel, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
    """``model`` with an adapter, or itself when ``peft_config`` is None (the host's, without ``--use_peft``).

    The host names no target modules; for a kind of model that peft makes no choice for (Phi-3) the plugin's is taken.
    """
    if peft_config is not None:
        if getattr(peft_config, "target_modules", ()) is None:
            peft_config.target_modules = TARGET_MODULES.get(model.config.model_type)
        return _get_peft_model(model, peft_config, *args, **kwargs)

    def print_trainable_parameters() -> None:
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in model.parameters())
        print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")

    model.print_trainable_parameters = print_trainable_parameters
    return model


def get_peft_model_state_dict(model: Any, *args: Any, **kwargs: Any) -> State:
    """The trained tensors by name, not copied."""
    if not hasattr(model, "peft_config"):
        return {name: parameter.detach() for name, parameter in live_parameters(model).items()}
    if "save_embedding_layers" in inspect.signature(_get_state_dict).parameters:
        kwargs.setdefault("save_embedding_layers", False)  # else peft asks the hub whether the vocabulary has grown
    return _get_state_dict(model, *args, **kwargs)


def set_peft_model_state_dict(model: Any, state: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
    """Copy ``state`` into ``model``."""
    if hasattr(model, "peft_config"):
        return _set_state_dict(model, state, *args, **kwargs)
    write_state(model, dict(state))
    return None


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within the block, torch draws from ``seed`` (an adapter's first weights); its random state is as before after."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def on_training_device(model: Any) -> Any:
    """``model`` where the Trainer would put it, unless it was placed when it was loaded.

    The host takes its global state, moments and control variates from a model that its first trainer has yet to move:
    with a GPU, they would lie on the CPU and the clients' states would not.
    """
    return model if any(getattr(model, name, False) for name in PLACED) else model.to(PartialState().device)
