"""The report as one HTML page: styles and pictures within, no script, nothing from a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fedbias_plugin import __version__
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, panel_svgs
from fedbias_plugin.report.findings import FindingGroup
from fedbias_plugin.report.table_model import Row, Table
from fedbias_plugin.report.what_was_run import READING, Facts

TEMPLATES = Path(__file__).parent / "templates"
TITLE = "Bias report"


@dataclass(frozen=True)
class Contents:
    """What a report says, whatever its format.

    Attributes:
        lead: the study in a sentence.
        caveats: sentences that must be read before any number.
        counts: name and value of the numbers under the title.
        paper_note: what is missing of the paper's numbers, or ''.
        findings: the sentences a reader wants first.
        tables: results, in order.
        figures: in order.
        left_out: figures without data.
        warnings: sentences on the study as a whole.
        run_warnings: what the runs warned of; None when they did not.
        facts: name and value of what was run.
    """

    lead: str
    caveats: Sequence[str]
    counts: Facts
    paper_note: str
    findings: Sequence[FindingGroup]
    tables: Sequence[Table]
    figures: Sequence[Figure]
    left_out: Sequence[LeftOut]
    warnings: Sequence[str]
    run_warnings: Table | None
    facts: Facts


def html_page(contents: Contents) -> str:
    """The page; everything that comes from files is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["row_groups"] = _row_groups
    # The only parts that are not escaped: our own style sheet, and drawings that an XML library wrote.
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    drawings = [[Markup(svg) for svg in panel_svgs(figure)] for figure in contents.figures]
    return environment.get_template("report.html").render(
        title=TITLE, page=contents, style=style, drawings=drawings, reading=READING, version=__version__
    )


def _row_groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Neighbours of the same group together."""
    for _, group in groupby(rows, key=lambda row: row.group):
        yield list(group)
