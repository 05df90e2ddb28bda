"""What dashboards show of a run as such: name, group, job type and tags, within the limits that W&B sets; settings.

One filter by tag finds a table of the paper; one group holds the seeds of one setting.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.assets import TINY, TINY_MODEL
from fedbias_plugin.errors import printable
from fedbias_plugin.fed_algs import local_client
from fedbias_plugin.files import plain_json
from fedbias_plugin.known_flags import all_options, flags_for
from fedbias_plugin.redaction import redacted_text

if TYPE_CHECKING:
    from fedbias_plugin.tracking.records import RunInfo

EXPERIMENTS_VARIABLE = "FEDBIAS_EXPERIMENTS"
"""Environment variable with the experiments that a run belongs to, separated by commas: ``table1,table3``."""
LONGEST_NAME = 128
LONGEST_TAG = 64
MOST_EXPERIMENTS = 16


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
    is_federated = local_client(fed_alg) is None
    sample_clients = sample_clients if is_federated else 1
    rule = config.get("aggregation")
    properties = {
        "model": model,
        "alg": fed_alg,
        "scenario": config.get("scenario"),
        "agg": rule,
        "clients": f"{sample_clients}/{num_clients}",
        "weighting": config.get("bama_weighting") if rule == "bama" else None,
        "attack": None if config.get("attack") == "none" else config.get("attack"),
        "tuning": _tuning(config),
    }
    named = [name for name in (part.strip() for part in experiments.split(",")) if name]
    tags = [*(f"{key}:{value}" for key, value in properties.items() if value), *named[:MOST_EXPERIMENTS]]
    # A name says what most runs share only where it differs.
    words = [fed_alg, properties["scenario"], rule, *_words_of_rule(config), properties["attack"]]
    words += [] if sample_clients == num_clients == 3 else [properties["clients"]]
    words += [properties["tuning"]] if properties["tuning"] not in ("lora", None) else []
    text = " ".join(str(word) for word in words if word)
    return RunNames(
        name=_fitting(text if model == TINY else f"{model} {text}", f" seed {seed}", LONGEST_NAME),
        group=_fitting(f"{model} {text}", f" {_settings_hash(config, model)}", LONGEST_NAME),
        job_type="centralised" if num_clients == 1 else "federated" if is_federated else "local",
        tags=tuple(dict.fromkeys(_fitting(tag, "", LONGEST_TAG) for tag in tags)),
    )


def _tuning(config: Mapping[str, Any]) -> str | None:
    """What is trained; None where it is not known."""
    if "use_peft" not in config:
        return None
    return config.get("trainable") or ("lora" if config["use_peft"] else "full")


def shown_config(run: RunInfo) -> dict[str, Any]:
    """The run's settings, JSON-ready, with the ids of the poisoned clients and every client's share of biased rows."""
    shares = sorted(run.poisoned_shares.items())
    poisoned = [client for client, share in shares if share > 0]
    by_client = [share for _, share in shares]  # one column, however many clients there are
    shown: dict[str, Any] = plain_json({**run.config, "poisoned_clients": poisoned, "poisoned_shares": by_client})[0]
    return shown


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


def _words_of_rule(config: Mapping[str, Any]) -> list[str]:
    """The flags of the run's rule that are not as by default, ``paper`` or ``alpha=1``; texts first."""
    rule, words = config.get("aggregation"), []
    for name, about in all_options().items():
        value = config.get(name, about.default)
        if value != about.default and rule in (about.read_when or {}).get("aggregation", ()):
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            words.append(shown if isinstance(value, str) else f"{name.removeprefix(f'{rule}_')}={shown}")
    return sorted(words, key=lambda word: "=" in word)


def _settings_hash(config: Mapping[str, Any], model: str) -> str:
    """Six digits that differ where any setting does; a seed is none, but whether there is a schedule seed is one."""
    other = flags_for("machine", "seed", "tracking")
    settings = {name: value for name, value in config.items() if name not in other}
    settings["model_name_or_path"] = model
    settings["has_schedule_seed"] = config.get("schedule_seed") is not None
    text = json.dumps(plain_json(settings)[0], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _fitting(text: str, end: str, longest: int) -> str:
    """``text`` and ``end`` on one line without logins, ``text`` cut where they are too long together."""
    clean = " ".join(printable(redacted_text(text)).split())
    room = longest - len(end)
    return (clean if len(clean) <= room else f"{clean[: room - 1]}…") + end
