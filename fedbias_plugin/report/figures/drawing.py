"""What a figure is, and how it becomes SVG for the page and PNG for Markdown.

A figure is a few panels of equal width. The page gets every panel as an SVG of its own, as wide as a phone, and lays
as many beside each other as fit; the PNG holds all panels in a grid. Equal input gives equal bytes.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar
from xml.etree import ElementTree

from fedbias_plugin.errors import printable

PANEL_WIDTH = 340
"""Width of a panel: pixels on a phone, points of the drawing; text of 11 points is 11 pixels there."""
PLOT_HEIGHT = 190
TEXT_SIZE = 11
LEGEND_ROW = 17
MOST_PANELS = 9
LONGEST_LABEL = 38
GRID_COLUMNS = 3
PNG_DPI = 100
PNG_COLOURS = 192

LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
T = TypeVar("T")
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"

STYLE: Mapping[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": TEXT_SIZE,
    "axes.titlesize": TEXT_SIZE,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT_SIZE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.axisbelow": True,
    "xtick.labelsize": TEXT_SIZE,
    "ytick.labelsize": TEXT_SIZE,
    "legend.fontsize": TEXT_SIZE,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedbias",
    "text.parse_math": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what the panel is of, such as ``FedAvg, 1B2C``.
        alt: what is to be seen in it, with numbers; read aloud instead of the picture.
        draw: draws into the axes given; labelled artists come into the legend below.
        height: of the axes with their tick labels, points.
    """

    title: str
    alt: str
    draw: Callable[[Any], None]
    height: float = PLOT_HEIGHT


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: stem of its files.
        title: what it shows.
        caption: how to read it, and what was left out.
        panels: at least one, at most :data:`MOST_PANELS`.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class LeftOut:
    """A figure that the study has no data for, and why."""

    title: str
    reason: str


def short(text: object, longest: int = LONGEST_LABEL) -> str:
    """A label of at most ``longest`` characters that shows, on one line.

    matplotlib leaves labels out that begin with an underscore; a space before it keeps them.
    """
    words = printable(" ".join(str(text).split()))
    cut = words if len(words) <= longest else words[: longest - 1] + "…"
    return f" {cut}" if cut.startswith("_") else cut


def capped(panels: Sequence[Panel], what: str) -> tuple[tuple[Panel, ...], str]:
    """The first :data:`MOST_PANELS` panels, and a sentence on the others (empty when there are none)."""
    left = len(panels) - MOST_PANELS
    if left <= 0:
        return tuple(panels), ""
    return tuple(panels[:MOST_PANELS]), (
        f" Shown are the first {MOST_PANELS} of {len(panels)} {what}; every round of all is in "
        "metrics.jsonl of the runs."
    )


def pieces(values: Sequence[T], most: int) -> list[list[T]]:
    """``values`` in pieces of at most ``most``, as equal as can be.

    >>> pieces([1, 2, 3, 4, 5], 4)
    [[1, 2], [3, 4, 5]]
    """
    count = -(-len(values) // most)
    return [list(values[len(values) * n // count : len(values) * (n + 1) // count]) for n in range(count)]


def panel_svgs(figure: Figure) -> list[str]:
    """Every panel as an ``<svg>`` element to be put into HTML, without an XML declaration."""
    return [_svg(panel, f"{figure.name}-{number}") for number, panel in enumerate(figure.panels, start=1)]


def figure_png(figure: Figure) -> bytes:
    """All panels in a grid, as PNG with a small palette."""
    from PIL import Image

    columns = min(len(figure.panels), 2 if len(figure.panels) in (2, 4) else GRID_COLUMNS)
    rows = [figure.panels[start : start + columns] for start in range(0, len(figure.panels), columns)]
    heights = [max(_height(panel) for panel in row) for row in rows]
    with _drawing((columns * PANEL_WIDTH, sum(heights))) as canvas:
        parts = canvas.subfigures(len(rows), columns, squeeze=False, height_ratios=heights)
        for row, row_parts in zip(rows, parts, strict=True):
            for panel, part in zip(row, row_parts, strict=False):
                _draw(part, panel)
        raw = io.BytesIO()
        canvas.savefig(raw, format="png", dpi=PNG_DPI, metadata={"Software": None})
    image = Image.open(raw).convert("RGB").quantize(PNG_COLOURS, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="png", optimize=True)
    return small.getvalue()


@contextmanager
def _drawing(size: tuple[float, float]) -> Iterator[Any]:
    """An empty canvas of ``size`` points, in our style whatever the user's matplotlibrc says."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from"
        )  # a letter that the font lacks shows as a box
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(STYLE)
            yield Canvas(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def _legend_columns(labels: Sequence[str]) -> int:
    longest = max(len(label) for label in labels)
    return 3 if longest <= 8 and len(labels) > 2 else 2 if longest <= 20 else 1


def _title(panel: Panel) -> str:
    """On at most two lines."""
    return "\n".join(textwrap.wrap(short(panel.title, 90), 44)[:2])


@lru_cache(maxsize=64)
def _height(panel: Panel) -> float:
    """Points of a panel with its title and legend; the legend is known only once it is drawn."""
    with _drawing((PANEL_WIDTH, panel.height)) as canvas:
        axes = canvas.add_subplot()
        panel.draw(axes)
        labels = axes.get_legend_handles_labels()[1]
    rows = -(-len(labels) // _legend_columns(labels)) if labels else 0
    return panel.height + 8 + 15 * len(_title(panel).splitlines()) + rows * LEGEND_ROW + (8 if rows else 0)


def _draw(canvas: Any, panel: Panel) -> None:
    axes = canvas.add_subplot()
    panel.draw(axes)
    canvas.suptitle(_title(panel), x=0.01, horizontalalignment="left", fontsize=TEXT_SIZE, fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        canvas.legend(
            handles, labels, loc="outside lower left", ncols=_legend_columns(labels), handlelength=2.4,
            columnspacing=1.2, labelspacing=0.3, borderpad=0.2,
        )  # fmt: skip


def _svg(panel: Panel, name: str) -> str:
    raw = io.BytesIO()
    with _drawing((PANEL_WIDTH, _height(panel))) as canvas:
        _draw(canvas, panel)
        canvas.patch.set_alpha(0)
        canvas.savefig(raw, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _for_html(raw.getvalue(), panel, name)


def _for_html(raw: bytes, panel: Panel, name: str) -> str:
    """matplotlib's file as one element of a page: own ids, alternative text, as wide as its place."""
    root = ElementTree.fromstring(raw)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}style" or child.tag.endswith("metadata"):
                parent.remove(child)
    for element in root.iter():
        _tidy(element, name)
    box = root.get("viewBox", "")
    title, desc = ElementTree.Element(f"{SVG}title"), ElementTree.Element(f"{SVG}desc")
    title.text, desc.text = printable(panel.title), printable(panel.alt)
    root[:0] = [title, desc]
    root.attrib = {
        "viewBox": box,
        "role": "img",
        "aria-label": printable(f"{panel.title}. {panel.alt}"),
        "class": "panel",
    }
    ElementTree.register_namespace("", SVG[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, name: str) -> None:
    """Put ``name`` before the element's id and before the ids it refers to, and shorten coordinates to 1/100 pixel."""
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.get('id')}")
    target = element.attrib.pop(f"{XLINK}href", None)
    if target is not None:
        element.set("href", f"#{name}-{target[1:]}" if target.startswith("#") else target)
    for key in ("d", "transform"):
        if key in element.attrib:
            element.set(key, LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", element.attrib[key]))
    for key in ("clip-path", "style", "fill"):
        value = element.get(key)
        if value and "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
