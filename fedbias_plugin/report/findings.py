"""The few sentences a reader wants first: what the runs say of the paper's findings, and which differences are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedbias_plugin.report.claims import AGREES, DISAGREES, RULE, Judgement
from fedbias_plugin.report.table_model import Row, Table

LEVEL = 0.05
MOST_TOLD = 6
MARKS = {AGREES: ("✓", "yes"), DISAGREES: ("✗", "no")}
P_VALUE = "_p_holm"


@dataclass(frozen=True)
class Finding:
    """A sentence.

    Attributes:
        text: the sentence.
        detail: the numbers behind it.
        verdict: ``agrees``, ``disagrees`` (both also ``... on StereoSet only``) or ``cannot be told``; '' where the
            paper says nothing of it.
    """

    text: str
    detail: str = ""
    verdict: str = ""

    @property
    def mark(self) -> str:
        """A sign that says the verdict without colour."""
        return self._signs[0]

    @property
    def kind(self) -> str:
        """``yes``, ``no`` or ``open``."""
        return self._signs[1]

    @property
    def _signs(self) -> tuple[str, str]:
        """Those of the verdict's first word, which may go on ``on StereoSet only``."""
        return MARKS.get(self.verdict.partition(" ")[0], ("?", "open"))


@dataclass(frozen=True)
class FindingGroup:
    """Findings under one title, and how they were come by."""

    title: str
    note: str
    findings: tuple[Finding, ...]


def key_findings(judgements: Sequence[Judgement], tables: Sequence[Table]) -> list[FindingGroup]:
    """The paper's claims held against the runs, then a sentence for every table of paired differences."""
    groups = []
    if judgements:
        groups.append(FindingGroup("The paper's findings, in these runs", RULE, tuple(map(_of_claim, judgements))))
    compared = tuple(finding for table in tables for finding in _of_table(table))
    if compared:
        note = (
            f"p below {LEVEL} after Holm's correction within the table. Of Delta, below 0 is nearer to 50; of scores "
            "on items, below 0 is fewer stereotypes preferred."
        )
        groups.append(FindingGroup("Differences that are told from chance", note, compared))
    return groups


def _of_claim(one: Judgement) -> Finding:
    variant = f", {one.variant} weighting" if one.variant else ""
    pairs = f"{one.pairs} pair{'s' if one.pairs != 1 else ''} of arms"
    detail = f"{one.model}{variant}, {pairs}. {one.why}"
    return Finding(one.statement, " ".join([detail, *one.notes]), one.shown)


def _of_table(table: Table) -> Iterator[Finding]:
    """One sentence on the tests of a table; nothing when it has none."""
    tested = [(row, index) for row in table.rows for index in _tests(table, row)]
    if not tested:
        return
    told = [(row, index) for row, index in tested if (row.cells[index].value or 0.0) < LEVEL]
    parts = [_difference(table, row, index) for row, index in told[:MOST_TOLD]]
    more = f"; and {len(told) - MOST_TOLD} more in the table" if len(told) > MOST_TOLD else ""
    text = f"{table.title}, told from chance: {len(told)} of {len(tested)}."
    yield Finding(text, "; ".join(parts) + more)


def _tests(table: Table, row: Row) -> list[int]:
    """Columns of a row that hold a p value, right of their difference; an SS that means nothing has none."""
    return [
        index
        for index, column in enumerate(table.columns)
        if column.measure.endswith(P_VALUE)
        and row.cells[index].value is not None
        and index > 0
        and not row.cells[index - 1].is_unsound
    ]


def _difference(table: Table, row: Row, index: int) -> str:
    value, p_value = row.cells[index - 1], row.cells[index]
    labels = " / ".join(label for label in row.labels if label)
    interval = f" {value.spread_shown}" if value.ci95 else ""
    sign = "" if p_value.shown.startswith("<") else "= "
    return f"{labels}: {table.columns[index - 1].title} {value.shown}{interval}, p {sign}{p_value.shown}"
