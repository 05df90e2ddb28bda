"""What the settings of a run say about its place in a study, and what the tables call an arm."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedbias_plugin.errors import printable, quoted
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.report.read_settings import NO_DEFAULT, read_settings

MOST_DIFFERENCES = 3
LONGEST_LABEL = 120


class RunSettings:
    """Typed reading of ``settings`` for runs and arms; a setting that is missing or of another type is None or ''."""

    settings: Mapping[str, Any]

    @property
    def aggregation(self) -> str:
        """Rule that weighted the clients."""
        return _text(self.settings, "aggregation")

    @property
    def model_path(self) -> str:
        """The whole hub name or folder of the model."""
        return _text(self.settings, "model_name_or_path").rstrip("/") or "unknown model"

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
    def schedule_seed(self) -> int | None:
        """Seed of which clients and rows a round takes."""
        return _integer(self.settings, "schedule_seed")

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

    A flag that is as by default does not count, so that runs from before it existed belong to the same arm; nor does
    one that the run does not read (:func:`fedbias_plugin.report.read_settings.read_settings`).
    """
    if not settings:
        return None
    read = read_settings(settings, aggregation)
    kept = {name: value for name, value in read.items() if value != defaults().get(name, NO_DEFAULT)}
    return json.dumps(kept | {"aggregation": aggregation}, sort_keys=True, default=str)


def shown_models(paths: Iterable[str]) -> dict[str, str]:
    """Full name of a model -> its last part, with as many folders before it as tell it from the others.

    >>> shown_models(["google/gemma-2-2b", "/home/me/models/gemma-2-2b", "/home/me/models/phi"])
    {'google/gemma-2-2b': 'google/gemma-2-2b', '/home/me/models/gemma-2-2b': 'models/gemma-2-2b', ...'phi'}
    """
    parts = {path: path.split("/") for path in paths}
    shown = {}
    for path, own in parts.items():
        depth = 1
        while depth < len(own) and [one[-depth:] for one in parts.values()].count(own[-depth:]) > 1:
            depth += 1
        shown[path] = "/".join(own[-depth:])
    return shown


def arm_labels(arms: Sequence[tuple[str, RunSettings]]) -> list[str]:
    """Short names of arms, given as name of the first run and settings; equal ones get the settings that differ."""
    models = shown_models(arm.model_path for _, arm in arms if arm.settings)
    labels = [_label(name, arm, models if len(models) > 1 else {}) for name, arm in arms]
    result = list(labels)
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [index for index, other in enumerate(labels) if other == label]
        for index, extra in zip(same, _differences([arms[index][1] for index in same]), strict=True):
            result[index] = f"{label} {extra}".strip()
    return [label[:LONGEST_LABEL] for label in result]


def _label(name: str, arm: RunSettings, models: Mapping[str, str]) -> str:
    if not arm.settings:
        return name
    model = f"{models[arm.model_path]} " if models else ""
    if arm.is_centralised:
        trained = "LoRA" if arm.settings.get("use_peft") else "full"
        return _shown(f"{model}centralised {trained} {arm.scenario}")
    weighting = f" ({arm.weighting})" if arm.weighting else ""
    clients = "" if arm.is_full_participation else f" {arm.sample_clients}/{arm.num_clients} clients"
    return _shown(f"{model}{arm.fed_alg} {arm.scenario} {arm.aggregation}{weighting}{clients}")


def _differences(arms: Sequence[RunSettings]) -> list[str]:
    """For each of several arms of one label, the settings in which they differ: ``bama_lambda=0.05``."""
    read = [read_settings(arm.settings, arm.aggregation) for arm in arms]
    names = sorted({name for one in read for name in one})
    different = [name for name in names if len({str(one.get(name)) for one in read}) > 1]
    shown = different[:MOST_DIFFERENCES]
    return [", ".join(_shown(f"{name}={value_text(one.get(name))}") for name in shown) for one in read]


def value_text(value: Any) -> str:
    """The value of a setting, of a path only the last part: where something lay is nobody's business."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return quoted(value)
    return printable(value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value)[:40]


def _shown(text: str) -> str:
    return printable(" ".join(text.split()))


def _text(settings: Mapping[str, Any], name: str) -> str:
    value = settings.get(name)
    return printable(value).replace("\n", " ") if isinstance(value, str) else ""


def _integer(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
