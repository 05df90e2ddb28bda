"""What an arm costs: seconds by phase, stacked, and the most memory it held."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, short
from fedbias_plugin.report.study import Arm, Study

TITLE = "Time by phase and peak memory"
PHASES = {
    "train": ("#0072B2", None, "training"),
    "assess": ("#E69F00", "///", "scoring clients"),
    "aggregate": ("#000000", None, "aggregation"),
    "evaluate": ("#B7DDF2", "...", "scoring the global model"),
}
MOST_ARMS = 14
ROW_HEIGHT = 33


def time_and_memory(study: Study) -> Figure | LeftOut:
    """Mean seconds of an arm's runs by phase; the highest peak of memory among them."""
    arms = [arm for arm in study.arms if any(_phases(arm))]
    if not arms:
        return LeftOut(TITLE, "no run recorded how long its rounds took.")
    shown = arms[:MOST_ARMS]
    more = (
        f" Shown are the first {MOST_ARMS} of {len(arms)} arms; the tables have them all."
        if len(arms) > MOST_ARMS
        else ""
    )
    caption = (
        "Wall-clock seconds of a whole run, mean over seeds, and the most memory of its process, or of the GPU where "
        "one is used. Runs that shared a machine took longer than they would alone."
    )
    height = 48 + ROW_HEIGHT * len(shown)
    return Figure("time_and_memory", TITLE, caption + more, (_time_panel(shown, height), _memory_panel(shown, height)))


def _phases(arm: Arm) -> list[float]:
    """Seconds of a whole run in every phase, mean over the arm's runs."""
    return [
        statistics.fmean(sum(getattr(record.seconds, phase) for record in run.rounds) for run in arm.runs)
        for phase in PHASES
    ]


def _peak(arm: Arm) -> float:
    """GiB."""
    return max(record.peak_memory_bytes for run in arm.runs for record in run.rounds) / 2**30


def _time_panel(arms: Sequence[Arm], height: float) -> Panel:
    seconds = [_phases(arm) for arm in arms]

    def draw(axes: Any) -> None:
        left = [0.0] * len(arms)
        for index, (colour, hatch, label) in enumerate(PHASES.values()):
            widths = [phases[index] for phases in seconds]
            axes.barh(
                range(len(arms)), widths, 0.42, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4,
                label=label,
            )  # fmt: skip
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _write(axes, arms, left, [f"{total:,.0f} s" for total in left])
        axes.set_xlabel("seconds a run")

    said = "; ".join(f"{arm.label}: {sum(phases):.0f} seconds" for arm, phases in zip(arms, seconds, strict=True))
    return Panel("Time", f"Seconds of a run by phase. {said}.", draw, height)


def _memory_panel(arms: Sequence[Arm], height: float) -> Panel:
    peaks = [_peak(arm) for arm in arms]

    def draw(axes: Any) -> None:
        axes.barh(range(len(arms)), peaks, 0.42, color="#009E73")
        _write(axes, arms, peaks, [f"{peak:.2f} GiB" for peak in peaks])
        axes.set_xlabel("GiB")

    said = "; ".join(f"{arm.label}: {peak:.2f} GiB" for arm, peak in zip(arms, peaks, strict=True))
    return Panel("Peak memory", f"Peak memory of a run. {said}.", draw, height)


def _write(axes: Any, arms: Sequence[Arm], ends: Sequence[float], totals: Sequence[str]) -> None:
    """An arm's name above its bar, the total behind it."""
    longest = max(ends) or 1.0
    for row, (arm, end, total) in enumerate(zip(arms, ends, totals, strict=True)):
        axes.text(0, row - 0.27, short(arm.label, 44), va="bottom", ha="left")
        axes.text(end + 0.015 * longest, row, total, va="center", ha="left")
    axes.set_xlim(0, longest * 1.25)
    axes.set_ylim(len(arms) - 0.6, -0.85)
    axes.set_yticks([])
    axes.locator_params(axis="x", nbins=5)
    axes.spines["left"].set_visible(False)
