"""Which arms share a panel, what each is called in it, and how it is drawn everywhere."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.report.figures.drawing import pieces, short
from fedbias_plugin.report.read_settings import read_settings
from fedbias_plugin.report.study import Arm
from fedbias_plugin.tracking.records import RoundRecord

MOST_LINES = 8
FIRST_SETTINGS = ("model_name_or_path", "fed_alg")
PANEL_SETTINGS = (*FIRST_SETTINGS, "participation", "scenario", "attack", "client_samples")
LINE_SETTINGS = ("aggregation", "weighting")
PLAIN_VALUES = frozenset(("model_name_or_path", "fed_alg", "scenario", "aggregation", "participation"))


@dataclass(frozen=True)
class LineStyle:
    """Colour (Okabe and Ito, and a grey), dashes and marker; each alone tells lines apart, as grey print must."""

    colour: str
    dashes: Any
    marker: str


LINE_STYLES = (
    LineStyle("#000000", "-", "o"),
    LineStyle("#0072B2", (0, (5, 2)), "s"),
    LineStyle("#D55E00", "-", "^"),
    LineStyle("#009E73", (0, (5, 1.5, 1, 1.5)), "D"),
    LineStyle("#CC79A7", (0, (1.2, 1.2)), "v"),
    LineStyle("#56B4E9", (0, (8, 2)), "P"),
    LineStyle("#E69F00", (0, (3, 1.5, 1, 1.5, 1, 1.5)), "X"),
    LineStyle("#6E6E6E", (0, (2, 1)), "*"),
)


@dataclass(frozen=True)
class Line:
    """One arm in a panel: its short name there and its look."""

    label: str
    style: LineStyle
    arm: Arm


@dataclass(frozen=True)
class ArmGroup:
    """Arms of one panel, at most :data:`MOST_LINES`."""

    title: str
    lines: tuple[Line, ...]


def group_arms(arms: Sequence[Arm], most: int = MOST_LINES) -> list[ArmGroup]:
    """Arms by model and algorithm; a group of more than ``most`` is split by further settings that differ.

    Arms that such a split leaves alone share panels. Arms of equal names within their panels look alike in all panels.
    """
    facts = [arm_facts(arm) for arm in arms]
    names = _distinguishing(facts)
    if len(_grouped(facts, names)) < len(facts):  # runs without settings: their labels are all there is
        return _styled([("All runs", [(arm.label, arm) for arm in part]) for part in pieces(arms, most)])
    further = [name for name in names if name not in LINE_SETTINGS]
    further += [name for name in reversed(LINE_SETTINGS) if name in names]
    panels = [
        panel
        for group in _grouped(facts, [name for name in names if name in FIRST_SETTINGS])
        for panel in _split(facts, group, further, most)
    ]
    return _styled([_named(arms, facts, names, panel) for panel in panels])


def arm_facts(arm: Arm) -> dict[str, Any]:
    """The settings that can tell arms apart, with the derived ones that say it more shortly."""
    facts = read_settings(arm.settings, arm.aggregation) if arm.settings else {}
    if facts:
        facts |= {"model_name_or_path": arm.model, "weighting": arm.weighting}
        facts["participation"] = f"{arm.sample_clients}/{arm.num_clients} clients"
    return {key: str(value) for key, value in facts.items()} | {"aggregation": arm.aggregation}


def mean_by_round(arm: Arm, read: Callable[[RoundRecord], float | None]) -> dict[int, tuple[float, float, float]]:
    """Round -> mean, lowest and highest over the arm's runs, for the rounds that every run has measured."""
    series = [{record.round: value for record in run.rounds if (value := read(record)) is not None} for run in arm.runs]
    common = sorted(set(series[0]).intersection(*series[1:]))
    return {
        number: (statistics.fmean(values), min(values), max(values))
        for number in common
        for values in [[one[number] for one in series]]
    }


def _distinguishing(facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that tell all arms apart: those everybody knows first, others only where they are still needed."""
    chosen: list[str] = []
    others = sorted({name for one in facts for name in one})
    for name in dict.fromkeys([*PANEL_SETTINGS, *LINE_SETTINGS, *others]):
        if len(_grouped(facts, [*chosen, name])) > max(len(_grouped(facts, chosen)), 1):
            chosen.append(name)
    return chosen


def _split(facts: Sequence[Mapping[str, Any]], group: list[int], names: Sequence[str], most: int) -> list[list[int]]:
    """``group`` itself if it is small enough, else its parts by the first setting in which its arms differ."""
    if len(group) <= most:
        return [group]
    own = [facts[index] for index in group]
    name = next(name for name in names if len({one.get(name) for one in own}) > 1)
    parts = [[group[place] for place in part] for part in _grouped(own, [name])]
    alone = [part[0] for part in parts if len(part) == 1]
    panels = [panel for part in parts if len(part) > 1 for panel in _split(facts, part, names, most)]
    return panels + pieces(alone, most)


def _named(
    arms: Sequence[Arm], facts: Sequence[Mapping[str, Any]], names: Sequence[str], panel: Sequence[int]
) -> tuple[str, list[tuple[str, Arm]]]:
    """A panel's title from what its arms share, and its lines' names from what they do not."""
    varying = [name for name in names if len({facts[index].get(name) for index in panel}) > 1]
    shared = [name for name in names if name not in varying] or ["fed_alg", "scenario"]
    title = _name(facts[panel[0]], shared).strip("– ") or "All runs"
    if len(panel) == 1:
        own = _name(facts[panel[0]], [name for name in ("scenario", *LINE_SETTINGS) if name in names])
        return title, [(own or arms[panel[0]].label, arms[panel[0]])]
    return title, [(_name(facts[index], varying), arms[index]) for index in panel]


def _grouped(facts: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[list[int]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, one in enumerate(facts):
        groups.setdefault(tuple(one.get(name) for name in names), []).append(index)
    return list(groups.values())


def _name(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = []
    for name in names:
        value = str(facts.get(name, "")) or ("" if name == "weighting" else "–")
        if name in PLAIN_VALUES:
            parts.append(value)
        elif name not in facts:  # read by other arms only
            continue
        elif name == "weighting":
            parts.append(f"({value})" if value else "")
        elif name == "attack":
            parts.append("no attack" if value == "none" else value)
        else:
            parts.append(f"{name}={value}")
    return " ".join(part for part in parts if part)


def _styled(groups: Sequence[tuple[str, Sequence[tuple[str, Arm]]]]) -> list[ArmGroup]:
    """A look for every name, the same in all panels, different within each; plain averaging (host) is black."""
    panels: dict[str, list[int]] = {}
    for number, (_, lines) in enumerate(groups):
        for label, _ in lines:
            panels.setdefault(label, []).append(number)
    taken: list[list[LineStyle]] = [[] for _ in groups]
    looks: dict[str, LineStyle] = {}
    for label in sorted(panels, key=lambda label: (label != "plain", -len(panels[label]))):
        free = [style for style in LINE_STYLES if not any(style in taken[number] for number in panels[label])]
        looks[label] = free[0] if free else LINE_STYLES[len(looks) % len(LINE_STYLES)]
        for number in panels[label]:
            taken[number].append(looks[label])
    return [
        ArmGroup(title, tuple(Line(short(label, 30), looks[label], arm) for label, arm in lines))
        for title, lines in groups
    ]
