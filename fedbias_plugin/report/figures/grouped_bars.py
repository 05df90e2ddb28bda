"""Delta at the end of runs as bars beside each other: mean over seeds, every seed a dot, and how far they spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.report.compare import delta
from fedbias_plugin.report.figures.arm_groups import LINE_STYLES
from fedbias_plugin.report.figures.drawing import Panel, pieces, short
from fedbias_plugin.report.study import Arm

MOST_GROUPS = 4
HATCHES = (None, "///", "...", "xxx", "\\\\\\", "++")
BENCHMARKS = {"crows_pairs": ("Delta CrowS", "score"), "stereoset": ("Delta SS", "ss")}
BAR_NOTE = (
    "Delta = |score - 50|. Bar: mean over seeds; dot: a seed; whisker: from the lowest to the highest "
    "seed, or, with one seed, the 95% interval over benchmark items. Below the bars of Delta SS stands their LMS."
)


@dataclass(frozen=True)
class Bar:
    """Delta of one arm.

    Attributes:
        values: a Delta a run, percentage points.
        low, high: end of the whisker.
        lms: mean LMS, for StereoSet.
    """

    values: tuple[float, ...]
    low: float
    high: float
    lms: float | None

    @property
    def mean(self) -> float:
        """Height of the bar."""
        return statistics.fmean(self.values)


@dataclass(frozen=True)
class BarGroup:
    """Bars side by side: the lines of the tick's name, and for every kind of bar an arm or None."""

    name: tuple[str, ...]
    arms: tuple[Arm | None, ...]


def bar_of(arm: Arm | None, benchmark: str) -> Bar | None:
    """Delta of the arm's last measured rounds; None without a measurement."""
    if arm is None:
        return None
    blocks = [getattr(run.last_measured.global_, benchmark) or {} for run in arm.runs]
    key = BENCHMARKS[benchmark][1]
    blocks = [block for block in blocks if block.get(key) is not None]
    if not blocks:
        return None
    deltas = [delta(block[key], block.get("ci95")) for block in blocks]
    values = tuple(one.value for one in deltas)
    low, high = min(values), max(values)
    if len(deltas) == 1 and deltas[0].low is not None and deltas[0].high is not None:
        low, high = deltas[0].low, deltas[0].high
    lms = [block["lms"] for block in blocks if block.get("lms") is not None]
    return Bar(values, low, high, statistics.fmean(lms) if lms else None)


def bar_panels(title: str, groups: Sequence[BarGroup], kinds: Sequence[str]) -> list[Panel]:
    """Panels of at most :data:`MOST_GROUPS` groups a benchmark; benchmarks without any value have none."""
    panels = []
    for benchmark, (name, _) in BENCHMARKS.items():
        bars = [[bar_of(arm, benchmark) for arm in group.arms] for group in groups]
        found = [bar for row in bars for bar in row if bar is not None]
        if found:
            top = 1.1 * max(1.0, *(bar.high for bar in found))
            heading = f"{name} · {title}" if title else name
            for part in pieces(list(zip(groups, bars, strict=True)), MOST_GROUPS):
                panels.append(_panel(heading, [group for group, _ in part], kinds, [row for _, row in part], top))
    return panels


def _panel(
    title: str, groups: Sequence[BarGroup], kinds: Sequence[str], bars: Sequence[Sequence[Bar | None]], top: float
) -> Panel:
    width = 0.8 / len(kinds)

    def draw(axes: Any) -> None:
        for index, kind in enumerate(kinds):
            places = [place + (index - (len(kinds) - 1) / 2) * width for place in range(len(groups))]
            _draw_kind(axes, kind, index, places, [row[index] for row in bars], width)
        axes.set_xticks(range(len(groups)), [_tick(group, row) for group, row in zip(groups, bars, strict=True)])
        axes.set_ylim(0, top)
        axes.set_xlim(-0.6, len(groups) - 0.4)
        axes.set_ylabel("Delta (points)")
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.7)

    return Panel(title, _spoken(groups, kinds, bars), draw)


def _tick(group: BarGroup, bars: Sequence[Bar | None]) -> str:
    """The group's name; under it the LMS of its bars."""
    lms = [bar.lms for bar in bars if bar is not None and bar.lms is not None]
    ends = dict.fromkeys(f"{end:.0f}" for end in (min(lms), max(lms))) if lms else {}
    return "\n".join([*(short(line, 11) for line in group.name), *([f"LMS {'–'.join(ends)}"] if ends else [])])


def _draw_kind(
    axes: Any, kind: str, index: int, places: Sequence[float], bars: Sequence[Bar | None], width: float
) -> None:
    found = [(place, bar) for place, bar in zip(places, bars, strict=True) if bar is not None]
    style = LINE_STYLES[(index + 1) % len(LINE_STYLES)]
    axes.bar(
        [place for place, _ in found], [bar.mean for _, bar in found], width * 0.92, color=style.colour, alpha=0.75,
        hatch=HATCHES[index % len(HATCHES)], edgecolor="white", linewidth=0.5, label=short(kind, 30),
    )  # fmt: skip
    for place, bar in found:
        axes.plot([place, place], [bar.low, bar.high], color="black", linewidth=1.3)
        if len(bar.values) > 1:
            axes.scatter([place] * len(bar.values), bar.values, s=12, color="black", zorder=3)


def _spoken(groups: Sequence[BarGroup], kinds: Sequence[str], bars: Sequence[Sequence[Bar | None]]) -> str:
    said = [
        f"{' '.join(group.name)}, {kind}: {bar.mean:.1f}" + (f" with LMS {bar.lms:.0f}" if bar.lms is not None else "")
        for group, row in zip(groups, bars, strict=True)
        for kind, bar in zip(kinds, row, strict=True)
        if bar is not None
    ]
    return f"Delta in percentage points. {'; '.join(said)}."
