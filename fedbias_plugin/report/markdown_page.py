"""The report as one Markdown page beside its pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote

from fedbias_plugin.report.figures.drawing import Figure
from fedbias_plugin.report.page import TITLE, Contents
from fedbias_plugin.report.table_formats import markdown_table, markdown_text
from fedbias_plugin.report.what_was_run import READING

LONGEST_ALT = 900


def markdown_page(contents: Contents, files: Mapping[str, str]) -> str:
    """The page; everything that comes from files is escaped.

    Args:
        contents: what the report says.
        files: name of a figure -> its PNG, relative to the page.
    """
    return "\n".join(_lines(contents, files)).rstrip() + "\n"


def alternative_text(figure: Figure) -> str:
    """What is to be seen in all panels of a figure, cut where it gets long."""
    said = " ".join(f"{panel.title}: {panel.alt}" for panel in figure.panels)
    return said if len(said) <= LONGEST_ALT else said[: LONGEST_ALT - 1] + "…"


def _lines(contents: Contents, files: Mapping[str, str]) -> Iterator[str]:
    yield from (f"# {TITLE}", "", markdown_text(contents.lead), "")
    for caveat in contents.caveats:
        yield from (f"**{markdown_text(caveat)}**", "")
    yield from (f"- {name}: {markdown_text(value)}" for name, value in contents.counts)
    yield ""
    if contents.paper_note:
        yield from (markdown_text(contents.paper_note), "")
    yield from _findings(contents)
    yield from ("## Figures", "")
    for number, figure in enumerate(contents.figures, start=1):
        yield from (f"### {markdown_text(figure.title)}", "")
        yield from (f"![{markdown_text(alternative_text(figure))}]({quote(files[figure.name])})", "")
        yield from (f"Figure {number}. {markdown_text(figure.caption)}", "")
    if contents.left_out:
        yield from ("Left out:", "")
        yield from (f"- {markdown_text(f'{one.title}: {one.reason}')}" for one in contents.left_out)
        yield ""
    yield from ("## Tables", "")
    for table in contents.tables:
        yield markdown_table(table)
    yield from ("## Warnings", "")
    yield from (f"- {markdown_text(text)}" for text in contents.warnings)
    if contents.run_warnings:
        yield from ("", markdown_table(contents.run_warnings))
    elif not contents.warnings:
        yield "None."
    yield from ("", "## How to read the numbers", "")
    yield from (f"- **{markdown_text(term)}**: {markdown_text(text)}" for term, text in READING)
    yield from ("", "## What was run", "")
    yield from (f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in contents.facts)


def _findings(contents: Contents) -> Iterator[str]:
    if not contents.findings:
        return
    yield from ("## Key findings", "")
    for group in contents.findings:
        yield from (f"### {markdown_text(group.title)}", "", markdown_text(group.note), "")
        for one in group.findings:
            verdict = f"**{one.mark} {one.verdict}**: " if one.verdict else ""
            detail = f" {markdown_text(one.detail)}" if one.detail else ""
            yield f"- {verdict}{markdown_text(one.text)}{detail}"
        yield ""
