"""The arguments of a run from what its user wrote in several places."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY, TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import FALSE, build, read_yaml
from fedbias_plugin.hosts.builtin.arguments import HostArguments


@functools.cache
def defaults() -> Mapping[str, Any]:
    """Flag -> default, of the built-in host and the plugin."""
    return {spec.name: spec.default for cls in (HostArguments, BiasArguments) for spec in dataclasses.fields(cls)}


def resolve(
    layers: Sequence[tuple[str, Mapping[str, Any]]],
) -> tuple[HostArguments, BiasArguments, dict[str, Any]]:
    """The two argument objects, and what the bundled model recommends for flags that nobody has written.

    Args:
        layers: (where it was written, flag -> value), the later winning.

    Raises:
        UserError: a value of the wrong type or out of range, or flags that contradict each other.
    """
    written = {name: value for _, values in layers for name, value in values.items()}
    if "max_steps" in written and written.get("local_epochs") is not None:
        raise UserError("--max_steps and --local_epochs are two ways to say how long a client trains; give one.")
    is_tiny = written.get("model_name_or_path", TINY) == TINY
    recommended = tiny_recommendations(written) if is_tiny else {}
    layers = [("recommended.yaml", recommended), *layers]
    bias = build(BiasArguments, layers)
    if bias.custom_shares:
        layers = [("biased_shares", {"num_clients": len(bias.custom_shares)}), *layers]
    return build(HostArguments, layers), bias, recommended


def tiny_recommendations(written: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that suit the bundled model, from the file beside it, for what nobody has ``written``.

    Written steps are not overruled by epochs, nor a training of all weights by a LoRA learning rate.
    """
    values = read_yaml(str(TINY_MODEL / "recommended.yaml"))
    if "max_steps" in written:
        values.pop("local_epochs", None)
    if str(written.get("use_peft", "true")).lower() in FALSE:
        values = {name: value for name, value in values.items() if not name.startswith(("learning_rate", "peft_"))}
    return {name: value for name, value in values.items() if name not in written}
