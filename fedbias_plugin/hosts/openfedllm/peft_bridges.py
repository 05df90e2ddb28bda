"""peft's functions for the models OpenFedLLM gives them: also without an adapter, when ``--use_peft`` is not given.

The compatibility module puts them in the place of peft's own before the host imports those. For a model with an adapter
they are peft's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import peft
import torch

from fedbias_plugin.state import State
from fedbias_plugin.training.models import TARGET_MODULES
from fedbias_plugin.training.states import live_parameters, write_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_get_peft_model = peft.get_peft_model
_get_state_dict = peft.get_peft_model_state_dict
_set_state_dict = peft.set_peft_model_state_dict


def get_peft_model(model: PreTrainedModel, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
    """``model`` with an adapter, or itself when ``peft_config`` is None (the host's, without ``--use_peft``).

    The host names no target modules; for a kind of model that peft makes no choice for (Phi-3) the plugin's is taken.
    """
    if peft_config is not None:
        if getattr(peft_config, "target_modules", ()) is None:
            peft_config.target_modules = TARGET_MODULES.get(model.config.model_type)
        return _get_peft_model(model, peft_config, *args, **kwargs)
    model.print_trainable_parameters = lambda: print_trainable_parameters(model)
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


def print_trainable_parameters(model: torch.nn.Module) -> None:
    """peft's line for a model that has no adapter."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    print(f"trainable params: {trained:,d} || all params: {total:,d} || trainable%: {100 * trained / total:.4f}")


def install() -> None:
    """Put the three functions in the place of peft's."""
    peft.get_peft_model = get_peft_model
    peft.get_peft_model_state_dict = get_peft_model_state_dict
    peft.set_peft_model_state_dict = set_peft_model_state_dict
