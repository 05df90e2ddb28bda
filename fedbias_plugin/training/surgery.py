"""A causal language model with some of its decoder layers alone: what a client holds that may not hold the whole."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.training.models import DTYPES, best_device
from fedbias_plugin.training.random_states import preserved_random_states

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LISTS = ("layers", "h")
"""What the list of decoder layers is called: in Llama and its like, and in GPT-2."""
NUMBER = re.compile(rf"(^|\.)({'|'.join(LISTS)})\.(\d+)\.")


def decoder_layers(model: Any) -> tuple[Any, str]:
    """The module that holds the list of decoder layers of ``model``, and the list's name in it.

    Raises:
        UserError: there is none under a name that is known here.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    decoder = getattr(base, getattr(base, "base_model_prefix", ""), base)
    for name in LISTS:
        if isinstance(getattr(decoder, name, None), torch.nn.ModuleList):
            return decoder, name
    raise UserError(
        f"No list of decoder layers was found in this {type(base).__name__}: --trainable offsite is for decoders built "
        "as Llama or GPT-2 are."
    )


def layer_count(model: Any) -> int:
    """Decoder layers of ``model``."""
    holder, name = decoder_layers(model)
    return len(getattr(holder, name))


def layer_number(parameter: str) -> int | None:
    """The number of the decoder layer that a parameter of this name belongs to; None for one outside of all.

    >>> layer_number("model.layers.3.mlp.up_proj.weight"), layer_number("lm_head.weight")
    (3, None)
    """
    found = NUMBER.search(parameter)
    return int(found[3]) if found else None


def renumbered(parameter: str, number: int) -> str:
    """The name of the same parameter in the decoder layer ``number``.

    >>> renumbered("transformer.h.3.attn.c_attn.weight", 5)
    'transformer.h.5.attn.c_attn.weight'
    """
    return NUMBER.sub(lambda found: f"{found[1]}{found[2]}.{number}.", parameter, count=1)


def kept_layers(layers: int, drop: float) -> list[int]:
    """Which of so many layers an emulator keeps, as FedBiOT's released code chooses them (``drop_layer``).

    n' = round(layers (1 - drop)), half to even; the i-th of them is int(i (layers - 1) / (n' - 1)), i = 0 to n' - 1:
    the first and the last always stay.

    >>> kept_layers(4, 0.5), kept_layers(4, 0.2)
    ([0, 3], [0, 1, 3])

    Raises:
        UserError: fewer than two would be left.
    """
    count = round(layers * (1 - drop))
    if count < 2:
        raise UserError(
            f"--ot_drop_ratio {drop:g} leaves {count} of {layers} layers, and an emulator keeps the first and the "
            "last: give a smaller one, or fewer --ot_adapter_layers."
        )
    return [int(number * (layers - 1) / (count - 1)) for number in range(count)]


def sliced_config(config: PreTrainedConfig, numbers: Sequence[int]) -> PreTrainedConfig:
    """A copy of ``config`` for a model of the layers ``numbers`` alone, with their own kinds of attention."""
    made = copy.deepcopy(config)
    made.num_hidden_layers = len(numbers)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        made.layer_types = [kinds[number] for number in numbers]
    return made


def with_layers(model: PreTrainedModel, numbers: Sequence[int]) -> PreTrainedModel:
    """A model with copies of the decoder layers ``numbers`` of ``model``; all other weights are the same tensors.

    Caches and attention patterns follow: its layers count from 0. ``model`` is left as it is.

    Raises:
        UserError: see :func:`decoder_layers`.
    """
    holder, name = decoder_layers(model)
    layers = getattr(holder, name)
    chosen = torch.nn.ModuleList([layers[number] for number in numbers])
    owned = {id(parameter) for parameter in layers.parameters()}
    shared = {id(one): one for one in model.parameters() if id(one) not in owned}
    setattr(holder, name, chosen)
    try:
        made = copy.deepcopy(model, dict(shared))
    finally:
        setattr(holder, name, layers)
    made.config = sliced_config(model.config, numbers)
    for module in made.modules():
        if getattr(module, "config", None) is not None:
            module.config = made.config
    for number, layer in enumerate(getattr(decoder_layers(made)[0], name)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number
    return made


def unread_model(
    config: Any, *, dtype: str = "float32", trust_remote_code: bool = False, device: Any = None
) -> PreTrainedModel:
    """A causal LM of ``config`` for weights that come from elsewhere than a checkpoint; its own mean nothing.

    Arguments as in :func:`load_model`; with ``device`` ``meta`` it has no weights.

    Raises:
        UserError: no causal LM is made of the config.
    """
    from transformers import AutoModelForCausalLM

    wanted = getattr(config, "dtype", None) if dtype == "auto" else DTYPES[dtype]
    options = {"trust_remote_code": trust_remote_code, "dtype": wanted or torch.float32}
    target = torch.device(device) if device is not None else best_device()
    try:
        with preserved_random_states(), target if target.type == "meta" else nullcontext():
            return AutoModelForCausalLM.from_config(config, **options).to(target).eval()
    except Exception as error:  # of a config that its model has no use for
        raise UserError(f"No causal LM can be made of a part of this config.json: {first_line(error)}") from error
