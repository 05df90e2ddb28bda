"""What a figure is, and how it becomes SVG for the page and PNG for Markdown; colours are fixed by name.

A figure is a few panels of equal size. The page gets every panel as an SVG of its own, as wide as a phone, and lays as
many beside each other as fit; the PNG holds all panels in a grid. Equal input gives equal bytes.
"""

from __future__ import annotations

import html
import io
import re
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fedbias_plugin.errors import printable
from fedbias_plugin.study.settings import one_line

PANEL_WIDTH, PLOT_HEIGHT, TEXT_SIZE, LEGEND_ROW = 340, 190, 11, 17
"""Pixels on a phone, points of the drawing: text of 11 points is 11 pixels there."""
MOST_PANELS, MOST_LINES, GRID_COLUMNS = 12, 5, 3
PNG_DPI, PNG_COLOURS = 100, 192
LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
T = TypeVar("T")
STYLE: Mapping[str, Any] = {
    **dict.fromkeys(
        ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize", "legend.fontsize"), TEXT_SIZE
    ),
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,
}
GRID = {"color": "#e4e4e4", "linewidth": 0.7}


@dataclass(frozen=True)
class Look:
    """Colour, dashes and marker of a line; each alone tells lines apart, as grey print must."""

    colour: str
    dashes: Any = "-"
    marker: str = "o"


DASHED, DOTTED, MIXED = (0, (5, 2)), (0, (1.2, 1.2)), (0, (5, 1.5, 1, 1.5))
LOOKS: Mapping[str, Look] = {
    "bama (normalized)": Look("#6A3D9A", DASHED, "s"),
    "bama (paper)": Look("#B15928", DOTTED, "D"),
    "mix-1B2C": Look("#009E73", MIXED, "v"),
    "mix-2B1C": Look("#E69F00", MIXED, "X"),
    "3C": Look("#56B4E9", "-", "o"),
    "1B2C": Look("#0072B2", "-", "s"),
    "2B1C": Look("#CC79A7", DASHED, "P"),
    "3B": Look("#D55E00", "-", "^"),
    "median": Look("#CC79A7", DOTTED, "v"),
    "krum": Look("#332288", MIXED, "<"),
    "multi_krum": Look("#E69F00", MIXED, "X"),
    "norm_clip": Look("#56B4E9", DASHED, "P"),
    "predictive": Look("#117733", "-", ">"),
    "plain": Look("#000000", "-", "o"),
    "fedavg": Look("#0072B2", "-", "o"),
    "fedadam": Look("#D55E00", DASHED, "^"),
    "fedprox": Look("#009E73", MIXED, "s"),
    "bama": Look("#6A3D9A", DASHED, "s"),
}
"""What a line's name holds -> its look, in every figure of every report; the first that fits."""
FURTHER = (
    Look("#CC79A7", DOTTED, "v"), Look("#56B4E9", DASHED, "P"), Look("#E69F00", MIXED, "X"),
    Look("#6E6E6E", DOTTED, "*"), Look("#6A3D9A", "-", "D"), Look("#B15928", DASHED, "h"),
    Look("#332288", MIXED, "<"), Look("#117733", "-", ">"),
)  # fmt: skip


NAMED = tuple(dict.fromkeys([*list(LOOKS.values())[:8], *FURTHER]))
"""Of arms that a study file names, by their places."""


def look_at(place: int | None) -> Look | None:
    """The look of a named arm; None for others, and beyond the last."""
    return NAMED[place] if place is not None and place < len(NAMED) else None


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for every line of a panel: that of its name, or of the names not known one by their letters."""
    taken: dict[str, Look] = {}
    for name in names:
        # What is told from others by a setting is not the arm that the name is of.
        known = next((look for key, look in LOOKS.items() if f" {key} " in f" {name} " and "=" not in name), None)
        start = zlib.crc32(name.encode())
        others = [FURTHER[(start + step) % len(FURTHER)] for step in range(len(FURTHER))]
        others.sort(key=lambda look: look in LOOKS.values())  # those of known names last
        free = [look for look in ([known] if known else []) + others if look not in taken.values()]
        taken[name] = free[0] if free else others[0]
    return taken


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what the panel is of, such as ``FedAvg 1B2C``.
        alt: what is to be seen in it, with numbers; read aloud instead of the picture.
        draw: draws into the axes given; labelled artists come into the legend below.
        labels: of those artists.
        height: of the axes with their tick labels, points.
    """

    title: str
    alt: str
    draw: Callable[[Any], None]
    labels: Sequence[str] = ()
    height: float = PLOT_HEIGHT


@dataclass(frozen=True)
class Figure:
    """A figure of the report: the stem of its files, what it shows and how to read it, and its panels."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def alt(self) -> str:
        """What is to be seen in all panels."""
        return " ".join(f"{panel.title}: {panel.alt}" for panel in self.panels)


def figure(name: str, title: str, caption: str, panels: Sequence[Panel]) -> list[Figure]:
    """A list of one figure with at most :data:`MOST_PANELS` panels, or of none without panels."""
    left = len(panels) - MOST_PANELS
    more = f" Shown are the first {MOST_PANELS} of {len(panels)} panels; the runs hold all." if left > 0 else ""
    return [Figure(name, title, caption + more, tuple(panels[:MOST_PANELS]))] if panels else []


def short(text: object, longest: int = 38) -> str:
    """A label of at most ``longest`` characters that shows, on one line; its end stays, where arms differ.

    matplotlib leaves labels out that begin with an underscore; a space before it keeps them.
    """
    words = one_line(str(text))
    half = longest // 2
    cut = words if len(words) <= longest else f"{words[: longest - half - 1]}…{words[-half:]}"
    return f" {cut}" if cut.startswith("_") else cut


def shorts(texts: Sequence[str], longest: int) -> list[str]:
    """:func:`short` of each, as long as it takes to tell different ones apart."""
    while len({short(text, longest) for text in texts}) < len(set(texts)) and longest < max(map(len, texts)):
        longest += 8
    return [short(text, longest) for text in texts]


def pieces(values: Sequence[T], most: int) -> list[list[T]]:
    """``values`` in pieces of at most ``most``, as equal as can be.

    >>> pieces([1, 2, 3, 4, 5], 4)
    [[1, 2], [3, 4, 5]]
    """
    count = -(-len(values) // most)
    return [list(values[len(values) * n // count : len(values) * (n + 1) // count]) for n in range(count)]


def panel_svgs(figure: Figure) -> list[str]:
    """Every panel as an ``<svg>`` element to be put into HTML, all of one height, without an XML declaration."""
    height, rows = _common_size(figure)
    svgs = []
    for number, panel in enumerate(figure.panels, start=1):
        raw = io.StringIO()
        with _drawing((PANEL_WIDTH, height), f"{figure.name}-{number}") as canvas:
            _draw(canvas, panel, rows)
            canvas.patch.set_alpha(0)
            canvas.savefig(raw, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        svgs.append(_for_html(raw.getvalue(), panel))
    return svgs


def figure_png(figure: Figure) -> bytes:
    """All panels in a grid, as PNG with a small palette."""
    from PIL import Image

    columns = min(len(figure.panels), 2 if len(figure.panels) in (2, 4) else GRID_COLUMNS)
    rows = [figure.panels[start : start + columns] for start in range(0, len(figure.panels), columns)]
    height, legend = _common_size(figure)
    with _drawing((columns * PANEL_WIDTH, len(rows) * height)) as canvas:
        parts = canvas.subfigures(len(rows), columns, squeeze=False)
        for row, row_parts in zip(rows, parts, strict=True):
            for panel, part in zip(row, row_parts, strict=False):
                _draw(part, panel, legend)
        raw = io.BytesIO()
        canvas.savefig(raw, format="png", dpi=PNG_DPI, metadata={"Software": None})
    image = Image.open(raw).convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()


@contextmanager
def _drawing(size: tuple[float, float], name: str = "") -> Iterator[Any]:
    """An empty canvas of ``size`` points, in our style alone; ``name`` is in its ids."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a letter that the font lacks is a box
        mpl.rcdefaults()
        mpl.rcParams.update({**STYLE, "svg.hashsalt": f"fedbias {name}"})
        yield Canvas(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max(map(len, labels), default=0)
    return 3 if longest <= 8 and len(labels) > 2 else 2 if longest <= 20 else 1


def _title(panel: Panel) -> str:
    """On at most two lines."""
    return "\n".join(textwrap.wrap(short(panel.title, 90), 44)[:2])


def _common_size(figure: Figure) -> tuple[float, int]:
    """Points of every panel with its title and legend, and the rows of its legend: those of the largest."""
    rows = max(-(-len(panel.labels) // _legend_columns(panel.labels)) for panel in figure.panels)
    titles = max(len(_title(panel).splitlines()) for panel in figure.panels)
    height = max(panel.height for panel in figure.panels)
    return height + 8 + 15 * titles + rows * LEGEND_ROW + (8 if rows else 0), rows


def _draw(canvas: Any, panel: Panel, legend_rows: int) -> None:
    """A panel; its legend is filled up to ``legend_rows``, so that the axes of all panels are of one height."""
    axes = canvas.add_subplot()
    panel.draw(axes)
    canvas.suptitle(_title(panel), x=0.01, horizontalalignment="left", fontsize=TEXT_SIZE, fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    if legend_rows:
        columns = _legend_columns(labels)
        blank = columns * legend_rows - len(labels)
        handles += axes.plot([], [], linestyle="none") * blank
        canvas.legend(
            handles, labels + [" "] * blank, loc="outside lower left", ncols=columns, handlelength=2.4,
            columnspacing=1.2, labelspacing=0.3, borderpad=0.2,
        )  # fmt: skip


def _for_html(raw: str, panel: Panel) -> str:
    """matplotlib's file as one element of a page: alternative text, 1/100 pixel, as wide as its place.

    Groups have names that every file has alike, and nothing refers to them.
    """
    _, view, body = re.split(r'<svg[^>]* viewBox="([^"]+)"[^>]*>', raw, maxsplit=1)
    body = re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"<[^>]+>", lambda tag: tag[0].replace(" xlink:href=", " href="), body)
    body = re.sub(r"<[^>]+>", lambda tag: LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", tag[0]), body)
    title, alt = (html.escape(printable(text)) for text in (panel.title, panel.alt))
    head = f'<svg viewBox="{view}" role="img" aria-label="{title}. {alt}" class="panel">'
    return f"{head}<title>{title}</title><desc>{alt}</desc>{body.rstrip()}"
