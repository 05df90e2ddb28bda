"""A table as data: what the Markdown, CSV, LaTeX and HTML writers are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedbias_plugin.report.statistics_over_seeds import Interval, Spread
from fedbias_plugin.tracking.formatting import MISSING

DAGGER = "†"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: mean over seeds, or a p value; None for a text or for nothing.
        sd: standard deviation over seeds.
        ci95: interval of ``value``.
        n: seeds behind ``value``, 0 where it is not a mean over seeds.
        digits: decimals shown.
        text: shown instead of a number.
        is_signed: a difference, shown with its sign.
        is_probability: a p value.
        is_best: shown in bold.
        is_unsound: LMS is below 60, so that this SS means nothing: marked with a dagger.
        is_apart: its settings differ from its neighbours', so that it is never the best of them.
        shows_n: ``n`` is shown beside the value, because it is not that of the other cells.
        asides: name -> mean, shown small beside the value: LMS and ICAT beside an SS.
        paper: the paper's number of this cell, None where it is not known.
        agrees: whether the direction of change is the paper's; None where it cannot be told.
    """

    value: float | None = None
    sd: float | None = None
    ci95: Interval | None = None
    n: int = 0
    digits: int = 2
    text: str | None = None
    is_signed: bool = False
    is_probability: bool = False
    is_best: bool = False
    is_unsound: bool = False
    is_apart: bool = False
    shows_n: bool = False
    asides: tuple[tuple[str, float], ...] = ()
    paper: float | None = None
    agrees: bool | None = None

    @property
    def shown(self) -> str:
        """The value alone as plain text: a number with its decimals, the text, or a dash."""
        if self.text is not None:
            return self.text
        if self.value is None:
            return MISSING
        if self.is_probability:
            return "<0.001" if self.value < 0.001 else f"{self.value:.3f}"
        return self.number(self.value)

    @property
    def spread_shown(self) -> str:
        """``± 1.20 [0.10, 2.30] n = 2`` or parts of it, or nothing."""
        parts = [f"± {self.sd:.{self.digits}f}"] if self.sd is not None else []
        if self.ci95 is not None:
            parts.append(f"[{', '.join(self.number(bound) for bound in self.ci95)}]")
        return " ".join([*parts, self.n_shown]).strip()

    @property
    def n_shown(self) -> str:
        """``n = 2``, or nothing where :attr:`shows_n` is not set."""
        return f"n = {self.n}" if self.shows_n else ""

    @property
    def asides_shown(self) -> str:
        """``LMS 91.0, ICAT 85.2`` or nothing."""
        return ", ".join(f"{name} {value:.1f}" for name, value in self.asides)

    @property
    def paper_shown(self) -> str:
        """``paper 3.10, agrees`` or nothing."""
        if self.paper is None:
            return ""
        verdict = {True: ", agrees", False: ", differs", None: ""}[self.agrees]
        return f"paper {self.paper:.{self.digits}f}{verdict}"

    def number(self, value: float) -> str:
        """``value`` with the decimals of this cell; a rounded zero has no sign."""
        text = f"{value:{'+' if self.is_signed else ''}.{self.digits}f}"
        return text.replace("-", "").replace("+", "") if float(text) == 0 else text


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: as its head shows it.
        measure: as CSV names it.
        group: head above that neighbours of the same group share.
    """

    title: str
    measure: str
    group: str = ""


@dataclass(frozen=True)
class Row:
    """A row: its names, its cells, and the row group it belongs to (a rule is drawn between groups)."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        id: short, for files and links.
        title: one line.
        caption: what it shows and how to read it.
        stub: heads of the columns of names, as many as every row has labels.
        columns: heads of the cells.
        rows: of as many cells as there are columns.
        notes: sentences below it.
    """

    id: str
    title: str
    caption: str
    stub: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def column_groups(self) -> list[tuple[str, int]]:
        """Heads above the columns and how many columns each spans, in order."""
        spans: list[tuple[str, int]] = []
        for column in self.columns:
            if spans and spans[-1][0] == column.group:
                spans[-1] = (column.group, spans[-1][1] + 1)
            else:
                spans.append((column.group, 1))
        return spans


def spread_cell(value: Spread | None, digits: int = 2, *, is_signed: bool = False) -> Cell:
    """A cell of a mean over seeds, empty for None."""
    if value is None:
        return Cell(digits=digits)
    return Cell(value.mean, value.sd, value.ci95, value.n, digits, is_signed=is_signed)


def p_cell(p_value: float | None) -> Cell:
    """A cell of a p value, empty for None."""
    return Cell(p_value, is_probability=True, digits=3)


def with_counts(table: Table) -> Table:
    """``table`` with n in the cells whose number of seeds is not the most common one, and a note that says so."""
    counts = Counter(cell.n for row in table.rows for cell in row.cells if cell.n and cell.value is not None)
    if len(counts) < 2:
        return table
    common = max(counts, key=lambda n: (counts[n], n))
    rows = [
        replace(row, cells=tuple(replace(cell, shows_n=cell.n not in (0, common)) for cell in row.cells))
        for row in table.rows
    ]
    note = f"n: seeds behind a cell, where they are not {common}."
    return replace(table, rows=tuple(rows), notes=(*table.notes, note))


def mark_best(rows: Sequence[Row], columns: Sequence[int], never: Mapping[int, bool]) -> list[Row]:
    """Mark the lowest value of each of ``columns`` within each row group that has two candidates and more.

    Args:
        rows: in the order shown.
        columns: numbers of the columns that are marked.
        never: row number -> True for rows that are no candidates (the original model). Cells that are unsound or apart
            are none either.
    """
    marked = [list(row.cells) for row in rows]
    for group in dict.fromkeys(row.group for row in rows):
        members = [index for index, row in enumerate(rows) if row.group == group and not never.get(index)]
        for column in columns:
            found = {
                index: cell.value
                for index in members
                if (cell := marked[index][column]).value is not None and not (cell.is_unsound or cell.is_apart)
            }
            lowest = min(found.values(), default=None) if len(found) > 1 else None
            for index, value in found.items():
                if value == lowest:
                    marked[index][column] = replace(marked[index][column], is_best=True)
    return [replace(row, cells=tuple(cells)) for row, cells in zip(rows, marked, strict=True)]
