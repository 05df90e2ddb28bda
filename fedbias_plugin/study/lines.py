"""A panel of lines: what it is drawn of, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedbias_plugin.study.drawing import GRID, PLOT_HEIGHT, Look, Panel, looks, shorts

MOST_LETTERS, SLANTED_HEIGHT = 40, 50
"""Of the labels of an axis together; longer ones stand aslant, which takes so many points."""


@dataclass(frozen=True)
class Line:
    """A line of a panel.

    Attributes:
        name: in the legend, with ``n``.
        x, y: of its points.
        n: how many seeds, clients or runs it is of.
        band: lowest and highest value at every ``x``; None for no band.
        threads: what it is a mean of, drawn thin: (x, y) each.
        look: fixed by its name where there is none.
        is_dots: points only.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    n: str
    band: tuple[Sequence[float], Sequence[float]] | None = None
    threads: Sequence[tuple[Sequence[float], Sequence[float]]] = ()
    look: Look | None = None
    is_dots: bool = False


def mean_line(name: str, points: pd.DataFrame, n: str, look: Look | None = None) -> Line:
    """The mean ``x`` and ``y`` of the runs in every ``round``; its band is from the lowest to the highest run."""
    rounds = points.groupby("round").agg(
        x=("x", "mean"), y=("y", "mean"), low=("y", "min"), high=("y", "max"), runs=("y", "count")
    )
    band = (list(rounds["low"]), list(rounds["high"])) if rounds["runs"].max() > 1 else None
    return Line(name, list(rounds["x"]), list(rounds["y"]), n, band, look=look)


def line_panel(title: str, lines: Sequence[Line], ideal: float | None = None, **axes_settings: Any) -> Panel:
    """Lines with their bands and threads; ``ideal`` is dashed, ``axes_settings`` are for ``Axes.set``."""
    fixed = looks([line.name for line in lines])
    names = shorts([line.name for line in lines], 30)
    labels = [f"{name} (n = {line.n})" for name, line in zip(names, lines, strict=True)]

    is_slanted = sum(map(len, axes_settings.get("xticklabels", ()))) > MOST_LETTERS

    def draw(axes: Any) -> None:
        if ideal is not None:
            axes.axhline(ideal, color="#555555", linestyle="--", linewidth=1)
        for line, label in zip(lines, labels, strict=True):
            look = line.look or fixed[line.name]
            if line.band:
                axes.fill_between(line.x, *line.band, color=look.colour, alpha=0.16, linewidth=0)
            for x, y in line.threads:
                axes.plot(x, y, "." if len(x) == 1 else "-", color=look.colour, linewidth=0.7, markersize=4, alpha=0.45)
            dashes, every = ("none", 1) if line.is_dots else (look.dashes, max(1, len(line.x) // 8))
            axes.plot(
                line.x, line.y, color=look.colour, linestyle=dashes, marker=look.marker, markersize=5, markevery=every,
                label=label,
            )  # fmt: skip
        axes.set(**axes_settings)
        if "xticks" in axes_settings:
            axes.minorticks_off()  # a logarithmic axis would label them
        if is_slanted:
            for label in axes.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
        axes.grid(axis="both" if any(line.is_dots for line in lines) else "y", **GRID)
        if axes_settings.get("xlabel") == "round":
            axes.xaxis.get_major_locator().set_params(integer=True)

    what, said = axes_settings.get("xlabel", ""), []
    for line in lines:
        ends = (f"{line.y[at]:.2f} at {what} {line.x[at]:.4g}" for at in dict.fromkeys((0, len(line.x) - 1)))
        said.append(f"{line.name}: {', '.join(ends)}")
    return Panel(
        title,
        f"{axes_settings.get('ylabel', '')}. {'; '.join(said)}.",
        draw,
        labels,
        PLOT_HEIGHT + (SLANTED_HEIGHT if is_slanted else 0),
    )
