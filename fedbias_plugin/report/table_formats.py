"""Tables as Markdown, CSV and LaTeX; everything that comes from files is escaped."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence

from fedbias_plugin.errors import printable
from fedbias_plugin.report.table_model import DAGGER, Cell, Column, Row, Table

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


def markdown_text(text: str) -> str:
    """One line of text that Markdown shows as it stands.

    >>> markdown_text("a|b <i>*c*")
    'a\\\\|b &lt;i&gt;\\\\*c\\\\*'
    """
    plain = html.escape(printable(" ".join(text.split())), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~!#$])", r"\\\1", plain)
    escaped = re.sub(r"^(\d+)([.)])", r"\1\\\2", escaped)
    return re.sub(r"^([-+=])", r"\\\1", escaped)


def markdown_table(table: Table) -> str:
    """A table with its title, caption and notes."""
    lines = [f"### {markdown_text(table.title)}", "", markdown_text(table.caption), ""]
    heads = [*table.stub, *(f"{column.group} {column.title}".strip() for column in table.columns)]
    lines += [_markdown_row(map(markdown_text, heads))]
    is_text = [any(row.cells[index].text for row in table.rows) for index in range(len(table.columns))]
    lines += [_markdown_row([*["---"] * len(table.stub), *("---" if text else "---:" for text in is_text)])]
    for row in table.rows:
        lines.append(_markdown_row([*map(markdown_text, row.labels), *map(_markdown_cell, row.cells)]))
    lines += ["", *(f"- {markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines).rstrip() + "\n"


def csv_tables(tables: Iterable[Table]) -> str:
    """All cells of all tables, a line a cell, and a line for each number beside one; numbers unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerows(_csv_lines(table, row, column, cell))
    return stream.getvalue()


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it stands; letters beyond Latin-1 become their code point.

    >>> latex_text("50% of a_b")
    '50\\\\% of a\\\\_b'
    """
    return "".join(_latex_letter(letter) for letter in printable(" ".join(text.split())))


def latex_table(table: Table) -> str:
    """A ``table`` environment to input, no wider than the text; the document needs booktabs and graphicx.

    Beside an SS stands its LMS only, and 95% intervals are left out: both are in the other formats.
    """
    size = r"\scriptsize" if len(table.columns) > 6 else r"\small"
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}[htbp]",
        rf"\centering{size}",
        rf"\caption{{{latex_text(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]', '-', table.id)}}}",
        rf"\sbox0{{\begin{{tabular}}{{{_latex_columns(table)}}}",
        r"\toprule",
        *_latex_heads(table),
        r"\midrule",
        *_latex_rows(table.rows),
        r"\bottomrule",
        r"\end{tabular}}%",
        r"\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi",
        *(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {latex_text(note)}}}" for note in _latex_notes(table)),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _markdown_row(parts: Iterable[str]) -> str:
    return f"| {' | '.join(parts)} |"


def _markdown_cell(cell: Cell) -> str:
    shown = markdown_text(cell.shown) if cell.text is not None else html.escape(cell.shown, quote=False)
    if cell.is_best:
        shown = f"**{shown}**"
    asides = [part for part in (cell.asides_shown, cell.paper_shown) if part]
    parts = [shown + DAGGER * cell.is_unsound, cell.spread_shown, f"({'; '.join(asides)})" if asides else ""]
    return " ".join(part for part in parts if part)


def _csv_lines(table: Table, row: Row, column: Column, cell: Cell) -> Iterator[list[str]]:
    where = [_csv_text(table.id), _csv_text(" / ".join(label for label in row.labels if label))]
    head = _csv_text(f"{column.group} {column.title}".strip())
    low, high = cell.ci95 or (None, None)
    numbers = [_csv_number(value) for value in (cell.value, cell.sd, low, high)]
    agrees = "" if cell.agrees is None else str(cell.agrees).lower()
    yield [
        *where, head, column.measure, *numbers, str(cell.n or ""), _csv_number(cell.paper), agrees,
        "true" if cell.is_best else "", "true" if cell.is_unsound else "", _csv_text(cell.text or ""),
    ]  # fmt: skip
    for name, value in cell.asides:
        yield [*where, head, name.lower(), _csv_number(value), "", "", "", str(cell.n or ""), *[""] * 5]


def _csv_number(value: float | None) -> str:
    return "" if value is None else repr(float(value))


def _csv_text(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    plain = printable(" ".join(text.split()))
    return f"'{plain}" if plain.startswith(("=", "+", "-", "@")) else plain


def _latex_letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    if letter.isascii() or (letter.isalpha() and letter <= "\u00ff" and letter not in "ªº"):
        return letter
    return f"{{[}}U+{ord(letter):04X}{{]}}"


def _latex_columns(table: Table) -> str:
    """Names to the left, numbers to the right; long texts in columns that break their lines."""
    texts = [[row.labels[index] for row in table.rows] for index in range(len(table.stub))]
    specs = [_latex_column(column, "l") for column in texts]
    for index in range(len(table.columns)):
        cells = [row.cells[index] for row in table.rows]
        specs.append(_latex_column([cell.text or "" for cell in cells], "r"))
    return "".join(specs)


def _latex_column(texts: Sequence[str], short: str) -> str:
    return r"p{0.3\linewidth}" if max(map(len, texts), default=0) > LONG_TEXT else short


def _latex_heads(table: Table) -> Iterator[str]:
    start = len(table.stub)
    if any(column.group for column in table.columns):
        parts, rules, at = [""] * start, [], start + 1
        for group, width in table.column_groups:
            parts.append(rf"\multicolumn{{{width}}}{{c}}{{{latex_text(group)}}}")
            rules += [rf"\cmidrule(lr){{{at}-{at + width - 1}}}"] if group else []
            at += width
        yield " & ".join(parts) + r" \\"
        yield "".join(rules)
    yield " & ".join(map(latex_text, [*table.stub, *(column.title for column in table.columns)])) + r" \\"


def _latex_rows(rows: Sequence[Row]) -> Iterator[str]:
    for index, row in enumerate(rows):
        if index and row.group != rows[index - 1].group:
            yield r"\midrule"
        yield " & ".join([*map(latex_text, row.labels), *map(_latex_cell, row.cells)]) + r" \\"


def _latex_cell(cell: Cell) -> str:
    shown = latex_text(cell.shown.replace("-", "−") if cell.text is None else cell.shown)
    if cell.is_best:
        shown = rf"\textbf{{{shown}}}"
    if cell.sd is not None:
        shown += rf"$_{{\pm {cell.sd:.{cell.digits}f}}}$"
    lms = [f"{name} {value:.1f}" for name, value in cell.asides[:1]]
    small = "; ".join(part for part in (*lms, cell.paper_shown, cell.n_shown) if part)
    return shown + (r"$^{\dagger}$" if cell.is_unsound else "") + (rf" {{\tiny({latex_text(small)})}}" if small else "")


def _latex_notes(table: Table) -> list[str]:
    """Brackets are not in this format."""
    with_interval = any(cell.ci95 for row in table.rows for cell in row.cells)
    return [*table.notes, *(["95% intervals are in the other formats."] if with_interval else [])]
