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
from fedbias_plugin.registry import load, names


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
    if written.get("trainable") is not None and "use_peft" not in written:
        layers = [("--trainable", {"use_peft": load("trainable", written["trainable"]).uses_peft(written)}), *layers]
        written |= layers[0][1]
    task = str(written.get("task", "sft"))
    if task in names("task"):
        own = {name: value for name, value in load("task", task).defaults(written).items() if name not in written}
        layers = [(f"--task {task}", own), *layers]
        written |= own
    recommended: dict[str, Any] = {}
    if written.get("model_name_or_path", TINY) == TINY:
        # Written steps are not overruled by epochs, nor a training of all weights by a LoRA learning rate.
        replaced: tuple[str, ...] = ("local_epochs",) if "max_steps" in written else ()
        if str(written.get("use_peft", "true")).lower() in FALSE:
            replaced += ("learning_rate", "peft_")
        values = read_yaml(str(TINY_MODEL / "recommended.yaml")).items()
        recommended = {name: value for name, value in values if name not in written and not name.startswith(replaced)}
    layers = [("recommended.yaml", recommended), *layers]
    bias = build(BiasArguments, layers)
    if bias.split is not None and bias.split.num_clients is not None:
        layers = [(f"--scenario {bias.scenario}", {"num_clients": bias.split.num_clients}), *layers]
    host = build(HostArguments, layers)
    flags = vars(host) | vars(bias)
    if bias.trainable is not None:
        load("trainable", bias.trainable).check_flags(flags)
    if bias.trainable is not None and host.use_peft != load("trainable", bias.trainable).uses_peft(flags):
        raise UserError(f"--trainable {bias.trainable} and --use_peft {host.use_peft} contradict each other; give one.")
    return host, bias, recommended
