"""What a run is called in dashboards: name, group, job type and tags, within the limits that W&B sets.

One filter by tag finds a table of the paper; one group holds the seeds of one setting.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.algorithms import local_client
from fedbias_plugin.assets import TINY, TINY_MODEL
from fedbias_plugin.errors import printable
from fedbias_plugin.files import plain_json
from fedbias_plugin.redaction import redacted_text
from fedbias_plugin.registry import all_options, flags_for

EXPERIMENTS_VARIABLE = "FEDBIAS_EXPERIMENTS"
"""Environment variable with the experiments that a run belongs to, separated by commas: ``table1,table3``."""
LONGEST_NAME = 128
LONGEST_TAG = 64
MOST_EXPERIMENTS = 16
BAMA_WORDS = {"bama_alpha": "alpha", "bama_lambda": "lambda"}


@dataclass(frozen=True)
class RunNames:
    """What a run is called; every text fits W&B, holds no login and no folder of the user's.

    Attributes:
        name: such as ``fedavg 1B2C bama seed 2023``.
        group: the same for runs that differ in their seed only.
        job_type: ``federated``, ``centralised`` (one client) or ``local`` (one of several clients alone).
        tags: one for each property that tables are made of, and the names of experiments.
    """

    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]


def run_names(
    config: Mapping[str, Any],
    *,
    fed_alg: str,
    num_clients: int,
    sample_clients: int,
    seed: int,
    experiments: str = "",
) -> RunNames:
    """The names of a run.

    Args:
        config: every resolved argument; what is missing there leaves its part out.
        fed_alg: server algorithm.
        num_clients: clients in the federation.
        sample_clients: clients of a round.
        seed: of the run; the group leaves it out.
        experiments: names separated by commas, which become tags.
    """
    model = model_label(str(config.get("model_name_or_path", "")))
    sample_clients = sample_clients if local_client(fed_alg) is None else 1
    properties = {
        "model": model,
        "alg": fed_alg,
        "scenario": config.get("scenario"),
        "agg": config.get("aggregation"),
        "clients": f"{sample_clients}/{num_clients}",
        "weighting": config.get("bama_weighting") if config.get("aggregation") == "bama" else None,
        "attack": None if config.get("attack") == "none" else config.get("attack"),
        "tuning": ("lora" if config["use_peft"] else "full") if "use_peft" in config else None,
    }
    tags = [f"{key}:{value}" for key, value in properties.items() if value]
    words = _words(properties, config, everyone=sample_clients == num_clients == 3)
    return RunNames(
        name=_fitting(" ".join([*([] if model == TINY else [model]), *words]), f" seed {seed}", LONGEST_NAME),
        group=_fitting(" ".join([model, *words]), f" {_settings_hash(config)}", LONGEST_NAME),
        job_type=_job_type(fed_alg, num_clients),
        tags=tuple(dict.fromkeys(_fitting(tag, "", LONGEST_TAG) for tag in [*tags, *_experiments(experiments)])),
    )


def model_label(name: str) -> str:
    """The last part of a hub name or a folder: what leads to it is nobody's business.

    >>> model_label("google/gemma-2-2b"), model_label("/home/me/models/mine/")
    ('gemma-2-2b', 'mine')
    """
    if name and Path(name) == TINY_MODEL:
        return TINY
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def artifact_name(run_name: str, suffix: str) -> str:
    """``run_name`` and ``suffix`` in the letters that every store of artifacts takes.

    >>> artifact_name("fedavg 1B2C bama seed 2023", "3f2a-files")
    'fedavg-1B2C-bama-seed-2023-3f2a-files'
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_name).strip("-") or "run"
    return f"{plain[: LONGEST_NAME - len(suffix) - 1]}-{suffix}"


def _words(properties: Mapping[str, Any], config: Mapping[str, Any], *, everyone: bool) -> list[str]:
    """The properties of a name; those that most runs share are said where they differ."""
    words = [properties["alg"], properties["scenario"], properties["agg"]]
    if properties["agg"] == "bama":
        words += ["paper"] if properties["weighting"] == "paper" else []
        words += [f"{word}={config[name]:g}" for name, word in BAMA_WORDS.items() if _is_changed(config, name)]
    words += [properties["attack"], None if everyone else properties["clients"]]
    words += ["full"] if properties["tuning"] == "full" else []
    return [str(word) for word in words if word]


def _is_changed(config: Mapping[str, Any], name: str) -> bool:
    return name in config and config[name] != all_options()[name].default


def _job_type(fed_alg: str, num_clients: int) -> str:
    if num_clients == 1:
        return "centralised"
    return "federated" if local_client(fed_alg) is None else "local"


def _settings_hash(config: Mapping[str, Any]) -> str:
    """Six digits that differ where any setting does; a seed is none, but whether there is a schedule seed is one."""
    other = flags_for("machine", "seed", "tracking")
    settings = {name: value for name, value in config.items() if name not in other}
    settings["model_name_or_path"] = model_label(str(config.get("model_name_or_path", "")))
    settings["has_schedule_seed"] = config.get("schedule_seed") is not None
    text = json.dumps(plain_json(settings)[0], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _experiments(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    return [name for name in names if name][:MOST_EXPERIMENTS]


def _fitting(text: str, end: str, longest: int) -> str:
    """``text`` and ``end`` on one line without logins, ``text`` cut where they are too long together."""
    clean = " ".join(printable(redacted_text(text)).split())
    room = longest - len(end)
    return (clean if len(clean) <= room else f"{clean[: room - 1]}…") + end
