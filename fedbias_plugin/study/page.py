"""The report as one HTML page (styles and pictures within, no script, nothing from a network) and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from fedbias_plugin import __version__
from fedbias_plugin.study.drawing import panel_svgs
from fedbias_plugin.study.table import markdown_table, markdown_text
from fedbias_plugin.study.verdicts import CONTRADICTED, PARTLY, SUPPORTED
from fedbias_plugin.study.words import TEMPLATES, words

MARKS = {SUPPORTED: ("✓", "yes"), PARTLY: ("✓", "yes"), CONTRADICTED: ("✗", "no")}


def html_page(page: Mapping[str, Any]) -> str:
    """The page of what :func:`fedbias_plugin.study.report.report_files` found; what comes from files is escaped."""
    from markupsafe import Markup

    # The only parts that are not escaped: our own style sheet, and drawings whose texts matplotlib escaped.
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    drawings = {figure.name: [Markup(svg) for svg in panel_svgs(figure)] for figure in page["figures"]}
    return _rendered("report.html", page, style=style, drawings=drawings)


def markdown_page(page: Mapping[str, Any]) -> str:
    """The same beside its pictures, in ``figures/NAME.png``."""
    return _rendered("report.md", page).rstrip() + "\n"


def _rendered(name: str, page: Mapping[str, Any], **more: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"), autoescape=select_autoescape(["html"]), trim_blocks=True,
        lstrip_blocks=True, undefined=StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "row_groups": lambda rows: [list(own) for _, own in groupby(rows, key=lambda row: row.group)],
        "md": markdown_text,
        "table": markdown_table,
    }
    known = {"page": page, "words": words(), "marks": MARKS, "version": __version__}
    return environment.get_template(name).render(**known, **more)
