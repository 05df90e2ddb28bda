"""Every flag of a patched run: the host's own objects, and the plugin's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.options import option
from fedbias_plugin.registry import names


@dataclass
class AttachedArguments(BiasArguments):
    """The plugin's flags in a patched OpenFedLLM: no scenario unless asked for, and preference sets for DPO."""

    scenario: str = option(
        "none",
        "who holds biased rows; none leaves the host's own data and split alone",
        choices=lambda: (*names("split"), "none"),
    )
    preference_dataset: str = option(
        "auto",
        "main_dpo.py with a scenario: the preference rows (prompt, chosen, rejected), which poisoned clients hold with "
        "chosen and rejected exchanged: a known name, a hub name or a file; auto takes BiasDPO if it is on this "
        "machine, else the bundled mini data; host takes what --dataset_name gives",
        unread_when={"scenario": ("none",)},
    )

    checkpoint_every: int = option(
        1,
        "write a checkpoint every so many rounds, from which --resume_from goes on; 0 writes none",
        at_least=0,
        matters="machine",
        may_change=True,
    )
    resume_from: str | None = option(
        None,
        "go on with the run in this folder (the one with metrics.jsonl) after its last finished round; give the flags "
        "that it began with",
        matters="machine",
        may_change=True,
    )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be poisoned, measured, weighed, refused, hidden or scheduled; the run is the host's."""
        asked = (
            self.aggregation != "plain",
            self.scenario != "none",
            self.attack != "none",
            self.on_bad_update != "stop",
            self.deterministic,
            self.benchmark_names,
        )
        given = (self.local_epochs, self.schedule_seed, self.max_update_norm, self.dp_epsilon, self.dp_noise_multiplier)
        return not any(asked) and all(value is None for value in given)


@dataclass
class AllArguments:
    """Every flag of a run.

    Attributes:
        script: the host's object with the model and the training.
        fed: the host's object with the federation (the same one in a fork that has one only).
        plugin: the plugin's.
        renamed: flag of the plugin -> its name in this host, which has one of the plugin's name itself.
        words: the command line, or what stands for it.
    """

    script: Any
    fed: Any
    plugin: AttachedArguments
    renamed: dict[str, str] = field(default_factory=dict)
    words: Sequence[str] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Flag -> value, the plugin's under its usual name; a host's own of that name as ``host_NAME``."""
        ours = {spec.name: getattr(self.plugin, spec.name) for spec in fields(self.plugin)}
        theirs = {**vars(self.script), **vars(self.fed)}
        return {f"host_{name}" if name in ours else name: value for name, value in theirs.items()} | ours
