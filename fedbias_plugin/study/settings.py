"""Which settings a run reads, what they say of its place in a study, and what an arm is called."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError, printable, quoted
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.known_flags import all_options, flags_for
from fedbias_plugin.options import options
from fedbias_plugin.registry import load

if TYPE_CHECKING:
    from fedbias_plugin.study.runs import Run

Settings = Mapping[str, Any]
NO_DEFAULT = object()
MOST_DIFFERENCES = 3
LONGEST_LABEL = 120
CARRIES = frozenset(("fed_alg", "aggregation", "use_peft"))
"""Settings that bring others with them: where one is varied, the flags that only some of its values read may differ."""
PRODUCT = ("bama_alpha", "bama_lambda")
"""The flags of which the fact ``strength`` is the product."""
CENTRALISED_SCENARIOS = {1.0: "3B", 0.0: "3C", 1 / 3: "mix-1B2C", 2 / 3: "mix-2B1C"}
"""Share of biased rows of a centralised run -> the scenario whose clients hold as many together."""


def same_arm() -> frozenset[str]:
    """Settings in which the runs of one arm may differ: seeds, names, and where and how they work."""
    return flags_for("machine", "seed", "tracking") | {"run_name"}


@lru_cache(maxsize=1)
def conditions() -> dict[str, frozenset[str]]:
    """Flag that is read in some runs only -> the flags that decide it."""
    found = {
        flag: (*(about.read_when or ()), *(about.unread_when or ()), *about.read_with)
        for flag, about in all_options().items()
    }
    return {flag: frozenset(names) for flag, names in found.items() if names}


def carried(varied: Iterable[str]) -> frozenset[str]:
    """``varied`` and the settings that follow from them (:data:`CARRIES`)."""
    names = frozenset(varied)
    return names | {flag for flag, on in conditions().items() if on & names & CARRIES}


def read_settings(settings: Settings, aggregation: str) -> dict[str, Any]:
    """What a run reads of its settings, absent ones as by default, without seeds and what costs time or memory only.

    Args:
        settings: every resolved argument that is known.
        aggregation: the rule that the records name.
    """
    known = {**defaults(), **settings, "aggregation": aggregation}
    known["sample_clients"] = known.get("sample_clients") or known.get("num_clients")
    left_out = same_arm() | flags_for("speed")
    options = all_options()
    return {
        name: value
        for name, value in known.items()
        if name not in left_out and (name not in options or options[name].is_read(known))
    }


def unusual(run: Run) -> int:
    """How many settings that a run reads are not as by default."""
    read = read_settings(run.settings, run.aggregation)
    return sum(defaults().get(name) != value for name, value in read.items())


def differences(one: Run, other: Run, varied: Collection[str]) -> list[str]:
    """The settings in which two runs differ although only ``varied`` may.

    A setting that one of them does not read is none: what makes the other read it is.
    """
    first, second = (read_settings(run.settings, run.aggregation) for run in (one, other))
    names = sorted((first.keys() | second.keys()) - flags_for("measuring") - carried(varied))
    read = [name for name in names if name not in conditions() or (name in first and name in second)]
    return [name for name in read if first.get(name) != second.get(name)]


def arm_key(settings: Settings, aggregation: str) -> str | None:
    """Equal for runs of one arm; None without settings.

    A flag that is as by default does not count, so that runs from before it existed belong to the same arm; nor does
    one that the run does not read (:func:`read_settings`).
    """
    if not settings:
        return None
    read = read_settings(settings, aggregation)
    kept = {name: value for name, value in read.items() if value != defaults().get(name, NO_DEFAULT)}
    return json.dumps(kept | {"aggregation": aggregation}, sort_keys=True, default=str)


def facts(settings: Settings, aggregation: str, model: str) -> dict[str, Any]:
    """What a study file may call a run by: everything it reads, and some names that say it more shortly.

    ``model``; ``training`` (``fed_alg``, or ``centralised full`` and ``centralised LoRA``); ``scenario`` (of a
    centralised run the one with the same share of biased rows); ``biased_share`` of all rows; ``clients``
    (``3 of 10``); ``weighting`` of BAMA; ``strength`` (alpha times lambda).
    """
    if not settings:
        return {"aggregation": aggregation}
    read = read_settings(settings, aggregation)
    clients, sampled = read.get("num_clients"), read.get("sample_clients")
    known = read | {"model": model, "training": read.get("fed_alg"), "clients": f"{sampled} of {clients}"}
    known["weighting"] = read.get("bama_weighting") or ""
    shares = expected_shares(settings)
    known["biased_share"] = share = round(sum(shares) / len(shares), 4) if shares else None
    if clients == 1:
        known["training"] = f"centralised {'LoRA' if settings.get('use_peft') else 'full'}"
        same = [
            name for value, name in CENTRALISED_SCENARIOS.items() if share is not None and abs(value - share) < 0.01
        ]
        known["scenario"] = same[0] if same else known.get("scenario")
    if aggregation == "bama" and all(isinstance(read.get(name), float | int) for name in PRODUCT):
        known["strength"] = round(math.prod(read[name] for name in PRODUCT), 6)
    return {name: value if isinstance(value, str | int | float | None) else str(value) for name, value in known.items()}


def expected_shares(settings: Settings) -> list[float] | None:
    """The clients' shares of biased rows that the scenario asks for, ascending; None where it does not say."""
    scenario, clients = settings.get("scenario"), settings.get("num_clients")
    if not isinstance(scenario, str) or not isinstance(clients, int):
        return None
    try:
        split = load("split", scenario)
        made = split(**{flag: settings[flag] for flag in options(split) if flag in settings})
        made.name = scenario
        shares = made.shares(clients, 0)
        return None if shares is None else sorted(shares)
    except (UserError, ValueError, TypeError):
        return None


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


def arm_labels(firsts: Sequence[Run], shown_as: Mapping[Any, str] | None = None) -> list[str]:
    """Short names of arms by their first runs; equal ones get the settings that differ.

    ``shown_as``: setting, or value of one, -> its name: ``ε=off`` for ``dp_epsilon=none``.
    """
    several = len({run.model_path for run in firsts if run.settings}) > 1
    labels = [_label(run, with_model=several) for run in firsts]
    result = list(labels)
    for label in {label for label in labels if labels.count(label) > 1}:
        same = [index for index, other in enumerate(labels) if other == label]
        read = [read_settings(firsts[index].settings, firsts[index].aggregation) for index in same]
        if all(len({one.get(name) for one in read}) > 1 for name in PRODUCT):  # their product alone weighs
            for index, one in zip(same, read, strict=True):
                one["α·λ"] = firsts[index].facts.get("strength")
                for name in PRODUCT:
                    del one[name]
        names = sorted({name for one in read for name in one})
        # Where some read a flag and others do not, what decides it differs too, and is shown.
        values = {
            name: {str(one.get(name)) for one in read if name in one or name not in conditions()} for name in names
        }
        differing = [name for name in names if len(values[name]) > 1]
        for most in range(MOST_DIFFERENCES, len(differing)):  # as many as tell them apart
            if len({str([one.get(name) for name in differing[:most]]) for one in read}) == len(same):
                differing = differing[:most]
                break
        for index, one in zip(same, read, strict=True):
            own = [name for name in differing if name in one or name not in conditions()]
            extra = ", ".join(_setting(name, one.get(name), shown_as or {}) for name in own)
            result[index] = f"{label} {extra}".strip()
    return [label[:LONGEST_LABEL] for label in result]


def _setting(name: str, value: Any, shown_as: Mapping[Any, str]) -> str:
    """``dp_epsilon=3.0``; of a setting with a name of its own ``ε=3``, its value by its name, too. No blank: figures
    drop the words that all labels share."""
    if name not in shown_as:
        return one_line(f"{name}={value_text(value)}")
    plain = f"{value:g}" if isinstance(value, float) else value_text(value)
    known = shown_as.get(value, plain) if isinstance(value, str | int | float | None) else plain
    return one_line(f"{shown_as[name]}={known}")


def _label(run: Run, *, with_model: bool) -> str:
    if not run.settings:
        return run.name
    model = f"{run.facts.get('model')} " if with_model else ""
    known = {name: text_of(run.facts, name) for name in ("training", "scenario", "fed_alg")}
    if run.facts.get("num_clients") == 1:
        return one_line(f"{model}{known['training']} {known['scenario']}")
    weighting = f" ({run.facts['weighting']})" if run.facts.get("weighting") else ""
    everybody = run.facts.get("num_clients") == run.facts.get("sample_clients") == 3
    clients = "" if everybody else f" {run.facts.get('sample_clients')}/{run.facts.get('num_clients')} clients"
    return one_line(f"{model}{known['fed_alg']} {known['scenario']} {run.aggregation}{weighting}{clients}")


def text_of(settings: Settings, name: str) -> str:
    """A setting that is a text, on one line; '' for anything else."""
    value = settings.get(name)
    return one_line(value) if isinstance(value, str) else ""


def value_text(value: Any) -> str:
    """The value of a setting, of a path only the last part: where something lay is nobody's business."""
    if value is None:
        return "none"
    if not isinstance(value, str):
        return quoted(value)
    return printable(value.rstrip("/").rpartition("/")[2] if value.startswith("/") else value)[:40]


def listed(texts: Iterable[object], most: int = 12) -> str:
    """The first few of different texts, with commas, and how many more there are.

    >>> listed("aabcd", 3)
    'a, b, c and 1 more'
    """
    shown = list(dict.fromkeys(one_line(str(text))[:200] for text in texts))
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def one_line(text: str) -> str:
    """Printable, without line feeds."""
    return printable(" ".join(text.split()))
