"""Bias of the global model by round, a line an arm, with a band over seeds and the line at 50."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.report.figures.arm_groups import ArmGroup, Line, group_arms, mean_by_round
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped
from fedbias_plugin.report.measures import LENGTH_ONLY, crows_score, lms, of_runs, ss
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.records import RoundRecord

SMALLEST_REACH = 5.0
SAME_LENGTH = 1.0
"""Percentage points: seeds have other report items, so that length alone gives a little more or less."""
Curve = Mapping[int, tuple[float, float, float]]


@dataclass(frozen=True)
class Measure:
    """A score to draw by round: its names and how a record holds it."""

    name: str
    title: str
    read: Callable[[RoundRecord], float | None]


CROWS = Measure("crows_by_round", "CrowS-Pairs score by round", crows_score)
STEREOSET = Measure("stereoset_by_round", "StereoSet SS by round", ss)


def crows_curves(study: Study) -> Figure | LeftOut:
    """The CrowS-Pairs score by round."""
    return _curves(study, CROWS)


def stereoset_curves(study: Study) -> Figure | LeftOut:
    """SS by round; the LMS of the last round stands with every line's name."""
    return _curves(study, STEREOSET)


def _curves(study: Study, measure: Measure) -> Figure | LeftOut:
    arms = [arm for arm in study.arms if len(mean_by_round(arm, measure.read)) > 1]
    if not arms:
        return LeftOut(measure.title, "no run was measured in more than one round.")
    limits = _limits([mean_by_round(arm, measure.read) for arm in arms], _lengths(arms) if measure is CROWS else [])
    panels = [_panel(group, measure, limits) for group in group_arms(arms)]
    shown, more = capped(panels, "panels")
    return Figure(measure.name, measure.title, _caption(study, measure) + more, shown)


def _caption(study: Study, measure: Measure) -> str:
    seeds = max(len(arm.runs) for arm in study.arms)
    band = (
        "Line: mean over seeds; band: from the lowest to the highest seed."
        if seeds > 1
        else "One seed an arm, so no band: the intervals are in the tables."
    )
    note = " LMS is that of the last round; SS means little where it is below 60." if measure is STEREOSET else ""
    if measure is CROWS and _lengths(study.arms):
        note = " Dotted: what length alone gives, where a model that knows nothing stands."
    return f"Above 50 (dashed) stereotypes are preferred. Round 0 is the untouched model. {band}{note}"


def _lengths(arms: Sequence[Arm]) -> list[float]:
    """What length alone gives, where the arms agree to a point: one number, or none."""
    found = [spread.mean for arm in arms if (spread := of_runs(arm, LENGTH_ONLY))]
    return [sum(found) / len(found)] if found and max(found) - min(found) <= SAME_LENGTH else []


def _limits(curves: Sequence[Curve], lengths: Sequence[float]) -> tuple[float, float]:
    """The same axis for all panels: all values, and 50 with :data:`SMALLEST_REACH` on both sides."""
    bounds = [bound for curve in curves for _, low, high in curve.values() for bound in (low, high)] + [*lengths]
    low, high = min(*bounds, UNBIASED - SMALLEST_REACH), max(*bounds, UNBIASED + SMALLEST_REACH)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _panel(group: ArmGroup, measure: Measure, limits: tuple[float, float]) -> Panel:
    curves = [(line, mean_by_round(line.arm, measure.read)) for line in group.lines]
    lengths = _lengths([line.arm for line in group.lines]) if measure is CROWS else []

    def draw(axes: Any) -> None:
        axes.axhline(UNBIASED, color="#777777", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for length in lengths:
            axes.axhline(length, color="#777777", linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        for line, curve in curves:
            _draw_line(axes, line, curve, _legend_label(line, measure))
        axes.set_ylim(*limits)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.locator_params(axis="y", nbins=6)
        axes.set_xlabel("round")
        axes.set_ylabel("score (50 = no preference)")

    said = "; ".join(f"{_legend_label(line, measure)}: {_spoken(curve)}" for line, curve in curves)
    return Panel(group.title, f"{measure.title}. {said}.", draw)


def _draw_line(axes: Any, line: Line, curve: Curve, label: str) -> None:
    rounds = list(curve)
    means, lows, highs = zip(*curve.values(), strict=True)
    style = line.style
    if len(line.arm.runs) > 1:
        axes.fill_between(rounds, lows, highs, color=style.colour, alpha=0.16, linewidth=0)
    axes.plot(
        rounds, means, color=style.colour, linestyle=style.dashes, marker=style.marker, markersize=4.5, linewidth=1.7,
        markevery=max(1, len(rounds) // 8), label=label,
    )  # fmt: skip


def _legend_label(line: Line, measure: Measure) -> str:
    if measure is not STEREOSET:
        return line.label
    language = mean_by_round(line.arm, lms)
    return f"{line.label}, LMS {language[max(language)][0]:.0f}" if language else f"{line.label}, no LMS"


def _spoken(curve: Curve) -> str:
    first, last = min(curve), max(curve)
    return f"{curve[first][0]:.1f} in round {first}, {curve[last][0]:.1f} in round {last}"
