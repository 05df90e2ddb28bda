"""Which arms stand beside each other: those that agree in every setting but the one that is looked at."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.registry import flags_for
from fedbias_plugin.report.read_settings import conditional_on, is_conditional, read_settings
from fedbias_plugin.report.settings import value_text
from fedbias_plugin.report.study import Arm, Study, StudyRun

ALGORITHM = frozenset(("fed_alg", *conditional_on("fed_alg")))
SCENARIO = frozenset(("scenario", "biased_shares"))
WEIGHTING = frozenset(("aggregation", *conditional_on("aggregation")))
PARTICIPATION = frozenset(("num_clients", "sample_clients"))
LOADING = ("dtype", "load_in_8bit", "load_in_4bit")
CENTRALISED = (
    ALGORITHM
    | SCENARIO
    | PARTICIPATION
    | conditional_on("use_peft")
    | {*LOADING, "bf16", "use_peft", "client_samples", "learning_rate", "batch_size", "gradient_accumulation_steps"}
)
"""Each: the settings that a comparison is about, or that follow from it; in all others its arms must agree."""
MOST_NAMED = 4


def differences(one: Arm, other: Arm, varied: Collection[str]) -> list[str]:
    """The settings in which two arms differ although only ``varied`` may.

    A setting that one of them does not read is none: what makes the other read it is.
    """
    first, second = (read_settings(arm.settings, arm.aggregation) for arm in (one, other))
    names = sorted((first.keys() | second.keys()) - flags_for("measuring") - set(varied))
    read = [name for name in names if not is_conditional(name) or (name in first and name in second)]
    return [name for name in read if first.get(name) != second.get(name)]


def difference_note(one: Arm, other: Arm, varied: Collection[str]) -> str | None:
    """A sentence on :func:`differences`; None without any."""
    names = differences(one, other, varied)
    if not names:
        return None
    values = [(_value(one, name), _value(other, name)) for name in names[:MOST_NAMED]]
    listed = ", ".join(f"{name} ({' and '.join(pair)})" for name, pair in zip(names, values, strict=False))
    more = f" and {len(names) - MOST_NAMED} more settings" if len(names) > MOST_NAMED else ""
    return f"Not compared, other settings too: {one.label} and {other.label} differ in {listed}{more}."


def _value(arm: Arm, name: str) -> str:
    return value_text(arm.settings.get(name, defaults().get(name)))


def agreeing(arms: Iterable[Arm], varied: Collection[str]) -> list[list[Arm]]:
    """``arms`` in groups that differ in ``varied`` only."""
    groups: list[list[Arm]] = []
    for arm in arms:
        own = next((group for group in groups if not differences(group[0], arm, varied)), None)
        if own is None:
            groups.append([arm])
        else:
            own.append(arm)
    return groups


def plain_arms(study: Study) -> list[Arm]:
    """Federated arms with known settings and without attackers."""
    return [arm for arm in study.arms if arm.settings and arm.fed_alg and not arm.attack and not arm.is_centralised]


def paper_arms(study: Study) -> list[Arm]:
    """Those of :func:`plain_arms` in which three of three clients take part."""
    return [arm for arm in plain_arms(study) if arm.is_full_participation]


def models(arms: Iterable[Arm]) -> list[str]:
    """The models of ``arms``, each once, in order."""
    return list(dict.fromkeys(arm.model for arm in arms))


def pick(
    arms: Iterable[Arm], notes: list[str], varied: Collection[str], *, beside: Arm | None = None, **wanted: Any
) -> Arm | None:
    """The arm whose properties are ``wanted``.

    Of several: one that agrees with ``beside`` in all but ``varied``, or without ``beside`` with most of ``arms``; then
    the one with default alpha and lambda, then most seeds. A sentence goes to ``notes`` when others would have fitted
    too. Whether the one taken agrees is for the caller to ask (:func:`difference_note`).
    """
    known = list(arms)
    found = _fitting(known, wanted)
    if len(found) < 2:
        return found[0] if found else None
    others = known if beside is None else [beside]

    def rank(arm: Arm) -> tuple[int, bool, int]:
        return sum(not differences(arm, one, varied) for one in others), has_default_strength(arm), len(arm.runs)

    best = max(found, key=rank)
    _name_others(best, found, notes)
    return best


def pick_pair(
    arms: Sequence[Arm], notes: list[str], varied: Collection[str], first: dict[str, Any], second: dict[str, Any]
) -> tuple[Arm, Arm] | None:
    """Two arms of the given properties; where some agree in all but ``varied``, two of those. None without any pair.

    Of several: with default alpha and lambda, then most seeds in common.
    """
    ones, others = _fitting(arms, first), _fitting(arms, second)
    pairs = [(one, other) for one in ones for other in others if one is not other]
    if not pairs:
        return None

    def rank(pair: tuple[Arm, Arm]) -> tuple[bool, int, int]:
        shared = pair[0].by_seed.keys() & pair[1].by_seed.keys()
        return not differences(*pair, varied), sum(map(has_default_strength, pair)), len(shared)

    best = max(pairs, key=rank)
    for arm, found in zip(best, (ones, others), strict=True):
        _name_others(arm, found, notes)
    return best


def _fitting(arms: Iterable[Arm], wanted: dict[str, Any]) -> list[Arm]:
    return [arm for arm in arms if all(getattr(arm, name) == value for name, value in wanted.items())]


def _name_others(best: Arm, found: Sequence[Arm], notes: list[str]) -> None:
    """Say which arms would have fitted where ``best`` is shown."""
    if len(found) > 1:
        others = ", ".join(arm.label for arm in found if arm is not best)
        note = f"Of {len(found)} arms that fit one place, {best.label} is shown; not shown: {others}."
        notes += [note] if note not in notes else []


def has_default_strength(arm: Arm) -> bool:
    """Whether alpha and lambda of BAMA are the plugin's defaults; True without BAMA."""
    if arm.aggregation != "bama":
        return True
    return all(
        arm.settings.get(name) == BiasArguments.__dataclass_fields__[name].default
        for name in ("bama_alpha", "bama_lambda")
    )


def original_models(arms: Sequence[Arm], model: str) -> dict[tuple[Any, ...], Arm]:
    """The untouched model as arms, one for each way (:func:`loading`) in which it was loaded.

    Of every seed it is the first run of ``model`` that measured round 0. The labels say how it was loaded where that
    differs.
    """
    runs: dict[tuple[Any, ...], dict[Any, StudyRun]] = {}
    for arm in arms:
        for run in arm.runs if arm.model == model else ():
            if run.first is not None and (run.first.global_.crows_pairs or run.first.global_.stereoset):
                runs.setdefault(loading(arm), {}).setdefault(run.seed, run)
    result = {}
    for key, by_seed in runs.items():
        dtype, in_8_bits, in_4_bits = key
        bits = " in 8 bits" if in_8_bits else " in 4 bits" if in_4_bits else ""
        label = f"original model, {dtype}{bits}" if len(runs) > 1 else "original model"
        settings = {"model_name_or_path": model, **dict(zip(LOADING, key, strict=True))}
        result[key] = Arm(label, settings, tuple(by_seed.values()), model)
    return result


def loading(arm: Arm) -> tuple[Any, ...]:
    """Dtype and quantisation of the base model, on which its scores depend before any training."""
    known = {**defaults(), **arm.settings}
    return value_text(known["dtype"]), bool(known["load_in_8bit"]), bool(known["load_in_4bit"])
