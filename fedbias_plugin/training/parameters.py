"""The trained part of a model as a mapping name -> tensor: what clients send and servers average."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.scoring.soft_prompts import soft_prompt
from fedbias_plugin.state import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fedbias_plugin.training.base import Trainable

TRAINABLE = "_fedbias_trainable"
"""Attribute of a model that says what prepared it."""


def live_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that a state stands for, not copied: :meth:`Trainable.parameters` of what prepared the model.

    Raises:
        ValueError: there are none.
    """
    trainable: Trainable | None = getattr(model, TRAINABLE, None)
    return trained_parameters(model) if trainable is None else trainable.parameters(model)


def prepared(model: PreTrainedModel, trainable: Trainable, seed: int) -> PreTrainedModel:
    """``model`` with what ``trainable`` trains; its states are of those parameters from now on.

    Raises:
        UserError: it does not fit this model.
    """
    model = trainable.prepare(model, seed)
    setattr(model, TRAINABLE, trainable)
    return model


def trained_parameters(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    """Name -> live parameter of what ``model`` trains.

    With a peft adapter these are the active adapter's, under the names of ``get_peft_model_state_dict`` (also when the
    adapter is loaded for inference, or the base is quantised); else every parameter that requires a gradient, a tied
    one once.

    Raises:
        ValueError: there are none.
    """
    if hasattr(model, "peft_config"):
        parameters = adapter_parameters(model)
    else:
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError("The model has no adapter and no parameter that requires a gradient: nothing can be trained.")
    return parameters


def read_state(model: PreTrainedModel) -> State:
    """Copies of :func:`live_parameters` on the CPU; 16-bit ones as float32.

    A server that averaged bfloat16 states in bfloat16 would move the model by more than a small update does.
    """
    state = {}
    for name, parameter in live_parameters(model).items():
        wide = torch.float32 if parameter.dtype in (torch.float16, torch.bfloat16) else parameter.dtype
        state[name] = parameter.detach().to("cpu", wide, copy=True)
    return state


@torch.no_grad()
def write_state(model: PreTrainedModel, state: State) -> None:
    """Copy ``state`` into the model, in the model's dtypes; the state itself is not kept.

    Raises:
        ValueError: names or shapes differ from the model's (the first one is named); the model is unchanged then.
    """
    parameters = live_parameters(model)
    missing, unknown = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or unknown:
        first_missing, first_unknown = (f" ({names[0]})" if names else "" for names in (missing, unknown))
        raise ValueError(
            f"The state does not fit the model: {len(missing)} tensor(s) missing{first_missing}, "
            f"{len(unknown)} unknown{first_unknown}."
        )
    for name, parameter in parameters.items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"The state does not fit the model: {name} has shape {tuple(state[name].shape)}, the model's has "
                f"{tuple(parameter.shape)}."
            )
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


def same_state(one: State, other: State) -> bool:
    """Whether two states are equal in every number; different ones are told apart by a small tensor where they can."""
    names = sorted(one, key=lambda name: one[name].numel())
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in names)


def adapter_parameters(model: Any) -> dict[str, torch.nn.Parameter]:
    """Those of the active adapter of a peft model, under the names of ``get_peft_model_state_dict``."""
    from peft import get_peft_model_state_dict

    prompt = soft_prompt(model)
    if prompt is not None:  # of which peft would give a copy
        return {"prompt_embeddings": prompt}
    adapter = model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapter[0]
    # Given its parameters, peft only filters and renames. Left to itself it copies the state of the whole base model,
    # and (where it has the option) asks the hub whether the vocabulary has grown.
    has_option = "save_embedding_layers" in inspect.signature(get_peft_model_state_dict).parameters
    options = {"save_embedding_layers": False} if has_option else {}
    named = dict(model.named_parameters())
    return get_peft_model_state_dict(model, state_dict=named, adapter_name=adapter, **options)
