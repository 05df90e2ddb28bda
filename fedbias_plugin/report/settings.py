"""What the settings of a run say about its place in a study, and what the tables call an arm."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import printable, quoted
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.tracking.records import MACHINE_FLAGS

SAME_ARM = MACHINE_FLAGS | {"seed", "schedule_seed", "track", "run_name"}
"""Settings in which the runs of one arm may differ: seeds, names, and where and how they work."""
MOST_DIFFERENCES = 3
LONGEST_LABEL = 120
NO_DEFAULT = object()


class RunSettings:
    """Typed reading of ``settings`` for runs and arms; a setting that is missing or of another type is None or ''."""

    settings: Mapping[str, Any]

    @property
    def aggregation(self) -> str:
        """Rule that weighted the clients."""
        return _text(self.settings, "aggregation")

    @property
    def model(self) -> str:
        """Name of the model: the hub name or the folder's last part."""
        return _text(self.settings, "model_name_or_path").rstrip("/").rpartition("/")[2] or "unknown model"

    @property
    def fed_alg(self) -> str:
        """Server algorithm."""
        return _text(self.settings, "fed_alg")

    @property
    def scenario(self) -> str:
        """Who holds biased rows."""
        return _text(self.settings, "scenario")

    @property
    def weighting(self) -> str:
        """``normalized`` or ``paper`` under BAMA, else ''."""
        return _text(self.settings, "bama_weighting") if self.aggregation == "bama" else ""

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return _integer(self.settings, "seed")

    @property
    def num_clients(self) -> int | None:
        """Clients in the federation."""
        return _integer(self.settings, "num_clients")

    @property
    def sample_clients(self) -> int | None:
        """Clients that take part in a round."""
        return _integer(self.settings, "sample_clients") or self.num_clients

    @property
    def attack(self) -> str:
        """What attackers do besides holding biased rows; '' for nothing."""
        return _text(self.settings, "attack").replace("none", "")

    @property
    def is_centralised(self) -> bool:
        """One client: no federation."""
        return self.num_clients == 1

    @property
    def is_full_participation(self) -> bool:
        """Three of three clients, as in the paper's tables."""
        return self.num_clients == self.sample_clients == 3


def arm_key(settings: Mapping[str, Any], aggregation: str) -> str | None:
    """Equal for runs of one arm; None without settings.

    A flag that is as by default does not count, so that runs from before it existed belong to the same arm.
    """
    if not settings:
        return None
    defaults = _defaults()
    kept = {
        name: value
        for name, value in settings.items()
        if name not in SAME_ARM and not name.startswith("wandb") and value != defaults.get(name, NO_DEFAULT)
    } | {"aggregation": aggregation}
    return json.dumps(kept, sort_keys=True, default=str)


def _defaults() -> dict[str, Any]:
    return {spec.name: spec.default for cls in (HostArguments, BiasArguments) for spec in dataclasses.fields(cls)}


def arm_labels(arms: Sequence[tuple[str, RunSettings]]) -> list[str]:
    """Short names of arms, given as name of the first run and settings; equal ones get the settings that differ."""
    several_models = len({arm.model for _, arm in arms if arm.settings}) > 1
    labels = [_label(name, arm, several_models) for name, arm in arms]
    result = list(labels)
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [index for index, other in enumerate(labels) if other == label]
        for index, extra in zip(same, _differences([arms[index][1].settings for index in same]), strict=True):
            result[index] = f"{label} {extra}".strip()
    return [label[:LONGEST_LABEL] for label in result]


def _label(name: str, arm: RunSettings, with_model: bool) -> str:
    if not arm.settings:
        return name
    model = f"{arm.model} " if with_model else ""
    if arm.is_centralised:
        trained = "LoRA" if arm.settings.get("use_peft") else "full"
        return _shown(f"{model}centralised {trained} {arm.scenario}")
    weighting = f" ({arm.weighting})" if arm.weighting else ""
    clients = "" if arm.is_full_participation else f" {arm.sample_clients}/{arm.num_clients} clients"
    return _shown(f"{model}{arm.fed_alg} {arm.scenario} {arm.aggregation}{weighting}{clients}")


def _differences(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of several arms of one label, the settings in which they differ: ``bama_lambda=0.05``."""
    names = {name for one in settings for name in one if name not in SAME_ARM and not name.startswith("wandb")}
    different = [name for name in sorted(names) if len({str(one.get(name)) for one in settings}) > 1]
    shown = different[:MOST_DIFFERENCES]
    return [", ".join(_shown(f"{name}={_value(one.get(name))}") for name in shown) for one in settings]


def _value(value: Any) -> str:
    return value[:40] if isinstance(value, str) else quoted(value)


def _shown(text: str) -> str:
    return printable(" ".join(text.split()))


def _text(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    return printable(value).replace("\n", " ") if isinstance(value, str) else ""


def _integer(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
