"""A table as data, and as Markdown, CSV and LaTeX; everything that comes from files is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from fedbias_plugin.metrics.formatting import MISSING
from fedbias_plugin.study.settings import one_line
from fedbias_plugin.study.statistics import Interval, Spread

DAGGER = "†"
CSV_COLUMNS = (
    *("table", "row", "column", "measure", "mean", "sd", "ci_low", "ci_high", "n", "paper", "agrees"),
    *("best", "lms_below_60", "text"),
)
LONG_TEXT = 30
"""Characters from which on a LaTeX column breaks its lines."""
# "[" and "*" would be an argument of the \\ before them, and two hyphens one dash: braces keep them apart.
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", "[": "{[}", "]": "{]}", "*": "{*}", "-": "{-}",
    "Δ": r"$\Delta$", "−": "$-$", "±": r"$\pm$",
    "–": "--", "—": "---", "†": r"$^{\dagger}$", "α": r"$\alpha$", "λ": r"$\lambda$", "·": r"$\cdot$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        value: mean over seeds, or a p value; None for a text or for nothing.
        sd, ci95, n: standard deviation over seeds, 95% interval, and how many seeds.
        form: how numbers are written, such as ``+.2f``.
        text: shown instead of ``value``.
        is_best: shown in bold.
        is_unsound: LMS is below 60, so that this SS means nothing: marked with a dagger.
        asides: name -> number, shown small beside the value: LMS and ICAT beside an SS.
        paper: the paper's number of this cell, None where it is not known.
        agrees: whether the direction of change is the paper's; None where one has no number.
    """

    value: float | None = None
    sd: float | None = None
    ci95: Interval | None = None
    n: int = 0
    form: str = ".2f"
    text: str | None = None
    is_best: bool = False
    is_unsound: bool = False
    asides: tuple[tuple[str, float], ...] = ()
    paper: float | None = None
    agrees: bool | None = None

    @property
    def is_text(self) -> bool:
        """Whether it is words, and no number."""
        return self.text is not None and self.value is None

    @property
    def shown(self) -> str:
        """The value alone as plain text: the text, a number with its decimals, or a dash."""
        if self.text is not None:
            return self.text
        return MISSING if self.value is None else self.number(self.value)

    @property
    def small(self) -> list[str]:
        """Lines below the value: spread and interval, asides, the paper's number."""
        spread = [f"± {self.sd:{self.form.lstrip('+')}}"] if self.sd is not None else []
        spread += [f"[{', '.join(self.number(bound) for bound in self.ci95)}]"] if self.ci95 is not None else []
        asides = [f"{name} {value:.1f}" for name, value in self.asides]
        return [*spread, *asides, *([self.paper_shown] if self.paper_shown else [])]

    @property
    def paper_shown(self) -> str:
        """``paper 3.10, same direction`` or nothing."""
        verdict = {True: ", same direction", False: ", other direction", None: ""}[self.agrees]
        return "" if self.paper is None else f"paper {self.paper:.2f}{verdict}"

    def number(self, value: float) -> str:
        """``value`` as this cell writes numbers; a rounded zero has no sign."""
        text = format(value, self.form)
        return text.replace("-", "").replace("+", "") if float(text) == 0 else text


@dataclass(frozen=True)
class Column:
    """A column: its head, what CSV calls it, and a head above that neighbours share."""

    title: str
    measure: str
    group: str = ""

    @property
    def head(self) -> str:
        """Both heads as one."""
        return f"{self.group} {self.title}".strip()


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
        title, caption: what it shows.
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
        return [(group, len(list(own))) for group, own in groupby(self.columns, key=lambda column: column.group)]

    @property
    def heads(self) -> list[str]:
        """Of all columns, each with the head above it."""
        return [*self.stub, *(column.head for column in self.columns)]


def spread_cell(value: Spread | None, form: str = ".2f", **marks: Any) -> Cell:
    """A cell of a mean over seeds, empty for None; ``marks`` are attributes of :class:`Cell`."""
    return Cell(form=form) if value is None else Cell(value.mean, value.sd, value.ci95, value.n, form, **marks)


def p_cell(p_value: float | None) -> Cell:
    """A cell of a p value, empty for None."""
    return Cell(p_value, form=".3f", text="<0.001" if p_value is not None and p_value < 0.001 else None)


def markdown_text(text: str) -> str:
    """One line of text that Markdown shows as it stands.

    >>> markdown_text("a|b <i>*c*")
    'a\\\\|b &lt;i&gt;\\\\*c\\\\*'
    """
    plain = html.escape(one_line(text), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~!#$])", r"\\\1", plain)
    escaped = re.sub(r"^(\d+)([.)])", r"\1\\\2", escaped)
    return re.sub(r"^([-+=])", r"\\\1", escaped)


def markdown_table(table: Table) -> str:
    """A table with its title, caption and notes."""
    lines = [f"### {markdown_text(table.title)}", "", markdown_text(table.caption), ""]
    lines.append(_markdown_row(map(markdown_text, table.heads)))
    lines.append(_markdown_row([*["---"] * len(table.stub), *["---:"] * len(table.columns)]))
    for row in table.rows:
        lines.append(_markdown_row([*map(markdown_text, row.labels), *map(_markdown_cell, row.cells)]))
    lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(parts: Iterable[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _markdown_cell(cell: Cell) -> str:
    shown = markdown_text(cell.shown) if cell.text is not None else html.escape(cell.shown, quote=False)
    shown = f"**{shown}**" if cell.is_best else shown
    return " ".join([shown + DAGGER * cell.is_unsound, *cell.small])


def csv_table(table: Table) -> str:
    """All cells, a line a cell, and a line for each number beside one; numbers unrounded."""
    lines: list[dict[str, Any]] = []
    for row in table.rows:
        label = _csv_text(" / ".join(label for label in row.labels if label))
        for column, cell in zip(table.columns, row.cells, strict=True):
            where = {"table": _csv_text(table.id), "row": label, "column": _csv_text(column.head), "n": cell.n or ""}
            numbers = dict(
                zip(("mean", "sd", "ci_low", "ci_high"), (cell.value, cell.sd, *(cell.ci95 or ())), strict=False)
            )
            marks = {"agrees": cell.agrees, "best": cell.is_best or None, "lms_below_60": cell.is_unsound or None}
            said = {name: None if mark is None else str(mark).lower() for name, mark in marks.items()}
            text = _csv_text(cell.text or "") if cell.value is None else ""
            lines.append({**where, "measure": column.measure, **numbers, "paper": cell.paper, **said, "text": text})
            lines += [{**where, "measure": name.lower(), "mean": value} for name, value in cell.asides]
    return pd.DataFrame(lines, columns=list(CSV_COLUMNS)).to_csv(index=False, lineterminator="\n")


def _csv_text(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    plain = one_line(text)
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@")) else plain


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands; letters beyond Latin-1 become their code point.

    >>> latex_text("50% of a_b")
    '50\\\\% of a\\\\_b'
    """
    return "".join(_latex_letter(letter) for letter in one_line(text))


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    if letter.isascii() or (letter.isalpha() and letter <= "\u00ff" and letter not in "ªº"):
        return letter
    return f"{{[}}U+{ord(letter):04X}{{]}}"


def latex_table(table: Table) -> str:
    """A ``table`` environment to input, no wider than the text; the document needs booktabs and graphicx.

    Beside an SS stands its LMS only, and 95% intervals are left out: both are in the other formats.
    """
    rows = []
    for index, row in enumerate(table.rows):
        rows += [r"\midrule"] if index and row.group != table.rows[index - 1].group else []
        rows.append(" & ".join([*map(latex_text, row.labels), *map(_latex_cell, row.cells)]) + r" \\")
    texts = [[*row.labels, *(cell.text or "" for cell in row.cells)] for row in table.rows]
    longest = [max(map(len, column), default=0) for column in zip(*texts, strict=True)] or [0] * len(table.heads)
    usual = "l" * len(table.stub) + "r" * len(table.columns)
    columns = "".join(
        r"p{0.3\linewidth}" if size > LONG_TEXT else one for size, one in zip(longest, usual, strict=True)
    )
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}[htbp]",
        rf"\centering\{'scriptsize' if len(table.columns) > 6 else 'small'}",
        rf"\caption{{{latex_text(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]', '-', table.id)}}}",
        rf"\sbox0{{\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(latex_text, table.heads)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}}%",
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        *(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {latex_text(note)}}}" for note in table.notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell) -> str:
    shown = latex_text(cell.shown.replace("-", "−") if cell.text is None else cell.shown)
    shown = rf"\textbf{{{shown}}}" if cell.is_best else shown
    if cell.sd is not None:
        shown += rf"$_{{\pm {format(cell.sd, cell.form.lstrip('+'))}}}$"
    small = "; ".join(
        part for part in (*(f"{name} {value:.1f}" for name, value in cell.asides[:1]), cell.paper_shown) if part
    )
    return shown + (r"$^{\dagger}$" if cell.is_unsound else "") + (rf" {{\tiny({latex_text(small)})}}" if small else "")
