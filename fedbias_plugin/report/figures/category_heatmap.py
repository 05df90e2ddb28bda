"""Bias by category and round: CrowS-Pairs bias types and StereoSet domains, colours centred on 50."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from fedbias_plugin.report.arm_choice import WEIGHTING, differences
from fedbias_plugin.report.figures.drawing import MOST_PANELS, Figure, LeftOut, Panel, capped, short
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.records import RoundRecord

TITLE = "Bias by category and round"
MOST_ROUNDS = 24
MOST_ROUNDS_WITH_NUMBERS = 8
MOST_CATEGORIES = 24
SMALLEST_REACH = 10.0
ROW_HEIGHT = 19
Cells = Mapping[str, Mapping[int, float]]


def category_heatmap(study: Study) -> Figure | LeftOut:
    """A panel an arm, a row a category, a column a round; mean over seeds."""
    found = [(arm, cells) for arm in study.arms if (cells := _cells(arm))]
    found = [(arm, cells) for arm, cells in found if len(_rounds(cells)) > 1] or found
    if not found:
        return LeftOut(TITLE, "no run has scores by category.")
    if len(found) > MOST_PANELS:
        found.sort(key=lambda pair: not _has_partner(pair[0], study))
    values = [value for _, cells in found for row in cells.values() for value in row.values()]
    reach = max(SMALLEST_REACH, *(abs(value - UNBIASED) for value in values))
    shown, more = capped([_panel(arm, cells, reach) for arm, cells in found], "arms")
    caption = (
        "Above the line CrowS-Pairs scores by bias type, below it StereoSet SS by domain with the LMS of the last "
        "round, mean over seeds. Orange, above 50: the stereotype is preferred; purple, below 50: the anti-stereotype. "
        f"Small categories are noisy: their numbers of items and intervals are in metrics.jsonl.{more}"
    )
    return Figure("category_heatmap", TITLE, caption, shown)


def _has_partner(arm: Arm, study: Study) -> bool:
    """Whether another arm differs from this one in how clients are weighted, and in nothing else."""
    return any(one is not arm and not differences(one, arm, WEIGHTING) for one in study.arms)


def _cells(arm: Arm) -> dict[str, dict[int, float]]:
    """Row label -> round -> mean score over the runs that have it; CrowS-Pairs first."""
    crows = _means(arm, "crows_pairs", "by_type", "score")
    stereo = _means(arm, "stereoset", "by_domain", "ss")
    lms = _means(arm, "stereoset", "by_domain", "lms")
    rows = {short(name, 20): row for name, row in crows.items()}
    for name, row in stereo.items():
        language = f"{lms[name][max(lms[name])]:.0f}" if name in lms else "?"
        rows[f"{short(name, 12)} (LMS {language})"] = row
    return dict(list(rows.items())[:MOST_CATEGORIES])


def _means(arm: Arm, benchmark: str, part: str, key: str) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, list[float]]] = {}
    for run in arm.runs:
        for record in run.rounds:
            for category, value in _categories(record, benchmark, part, key).items():
                found.setdefault(category, {}).setdefault(record.round, []).append(value)
    return {name: {number: statistics.fmean(values) for number, values in row.items()} for name, row in found.items()}


def _categories(record: RoundRecord, benchmark: str, part: str, key: str) -> dict[str, float]:
    """Category -> number; what is no number in a damaged file is left out."""
    categories = (getattr(record.global_, benchmark) or {}).get(part)
    if not isinstance(categories, Mapping):
        return {}
    values = {name: result.get(key) for name, result in categories.items() if isinstance(result, Mapping)}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100
    }


def _rounds(cells: Cells) -> list[int]:
    """All rounds, or evenly chosen ones with the last among them."""
    rounds = sorted({number for row in cells.values() for number in row})
    step = -(-len(rounds) // MOST_ROUNDS) or 1
    return rounds[::-1][::step][::-1]


def _panel(arm: Arm, cells: Cells, reach: float) -> Panel:
    rounds = _rounds(cells)

    def draw(axes: Any) -> None:
        import numpy as np

        grid = np.array([[row.get(number, np.nan) for number in rounds] for row in cells.values()])
        mesh = axes.pcolormesh(
            grid, cmap="PuOr_r", vmin=UNBIASED - reach, vmax=UNBIASED + reach, edgecolors="white", linewidth=0.8
        )
        if len(rounds) <= MOST_ROUNDS_WITH_NUMBERS:
            _write_numbers(axes, grid, reach)
        else:
            axes.figure.colorbar(
                mesh, ax=axes, location="bottom", shrink=0.9, aspect=30, label="score (50 = no preference)"
            )
        _label(axes, list(cells), rounds)

    return Panel(
        arm.label,
        f"{TITLE}. {_spoken(cells)}",
        draw,
        40 + ROW_HEIGHT * len(cells) + (0 if len(rounds) <= MOST_ROUNDS_WITH_NUMBERS else 50),
    )


def _write_numbers(axes: Any, grid: Any, reach: float) -> None:
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            if value == value:  # not NaN
                is_dark = abs(value - UNBIASED) > 0.6 * reach
                axes.text(
                    column + 0.5, row + 0.52, f"{value:.0f}", ha="center", va="center",
                    color="white" if is_dark else "black",
                )  # fmt: skip


def _label(axes: Any, names: list[str], rounds: list[int]) -> None:
    step = -(-len(rounds) // 8)
    axes.set_xticks([place + 0.5 for place in range(0, len(rounds), step)], [str(one) for one in rounds[::step]])
    axes.set_yticks([place + 0.5 for place in range(len(names))], names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    axes.set_xlabel("round")
    domains = sum("(LMS " in name for name in names)
    if 0 < domains < len(names):
        axes.axhline(len(names) - domains, color="black", linewidth=1.6)


def _spoken(cells: Cells) -> str:
    last = {name: row[max(row)] for name, row in cells.items()}
    farthest = sorted(last, key=lambda name: abs(last[name] - UNBIASED), reverse=True)[:3]
    return "In the last round farthest from 50: " + ", ".join(f"{name} {last[name]:.1f}" for name in farthest) + "."
