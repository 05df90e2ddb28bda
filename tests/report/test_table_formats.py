"""Markdown, CSV and LaTeX of a table: the numbers, and nothing that a name could break."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pytest

from fedbias_plugin.report.paper import load_paper
from fedbias_plugin.report.statistics_over_seeds import Spread
from fedbias_plugin.report.study import load_study
from fedbias_plugin.report.table_formats import csv_tables, latex_table, latex_text, markdown_table, markdown_text
from fedbias_plugin.report.table_model import Cell, Column, Row, Table, p_cell, spread_cell
from fedbias_plugin.report.tables import build_tables
from tests.report.made_runs import make_run

HOSTILE = "=cmd|'x'!A1\n| <script>alert(1)</script> $x_1^2$ \\input{/etc/passwd} [a](http://b) `c` *d* 100% #1 & ~ {"


@pytest.fixture
def table():
    best = Cell(3.25, 0.5, (2.0, 4.5), 3, is_best=True, paper=4.0, agrees=True)
    unsound = Cell(1.5, n=3, is_unsound=True, asides=(("LMS", 55.0), ("ICAT", 54.25)))
    rows = (
        Row(("m", "one"), (best, unsound, spread_cell(Spread(-1.5, 0.25, (-2.0, -1.0), 3), is_signed=True)), "g"),
        Row(("m", HOSTILE), (Cell(), Cell(text="-2+3"), p_cell(0.0001)), "h"),
    )
    columns = (Column("ΔCrowS", "delta_crows", "3B"), Column("ΔSS", "delta_ss", "3B"), Column("p", "p_holm", ""))
    return Table("t1", "Title", "Caption.", ("model", "name"), columns, rows, ("A note.",))


def test_markdown_has_a_column_each_and_the_numbers(table):
    lines = markdown_table(table).splitlines()
    assert lines[:5] == ["### Title", "", "Caption.", "", "| model | name | 3B ΔCrowS | 3B ΔSS | p |"]
    assert lines[5] == "| --- | --- | ---: | --- | ---: |"
    assert lines[6] == (
        "| m | one | **3.25** ± 0.50 [2.00, 4.50] (paper 4.00, agrees) | 1.50† (LMS 55.0, ICAT 54.2) | "
        "-1.50 ± 0.25 [-2.00, -1.00] |"
    )
    assert lines[7].endswith("| – | \\-2+3 | &lt;0.001 |")
    assert lines[-1] == "- A note."


def test_a_hostile_name_stays_one_markdown_cell_of_plain_text(table):
    line = markdown_table(table).splitlines()[7]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "<" not in line
    assert not re.search(r"(?<!\\)[`*$_\[\]]", line)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("# no head", r"\# no head"), ("- no list", r"\- no list"), ("1. no list", r"1\. no list"),
        ("a\n\n# b", r"a \# b"), ("a\\|b", "a\\\\\\|b"), ("![x](y)", r"\!\[x\](y)"), ("&lt;", "&amp;lt;"),
        ("\x1b[31mred", "\\\\x1b\\[31mred"),
    ],
)  # fmt: skip
def test_text_cannot_become_markdown(text, shown):
    assert markdown_text(text) == shown


def test_csv_has_a_line_a_number_unrounded(table):
    rows = list(csv.DictReader(io.StringIO(csv_tables([table]))))
    assert [row["measure"] for row in rows] == [
        "delta_crows", "delta_ss", "lms", "icat", "p_holm", "delta_crows", "delta_ss", "p_holm",
    ]  # fmt: skip
    assert rows[0] == {
        "table": "t1", "row": "m / one", "column": "3B ΔCrowS", "measure": "delta_crows", "mean": "3.25", "sd": "0.5",
        "ci_low": "2.0", "ci_high": "4.5", "n": "3", "paper": "4.0", "agrees": "true", "best": "true",
        "lms_below_60": "", "text": "",
    }  # fmt: skip
    assert (rows[1]["lms_below_60"], rows[2]["mean"], rows[3]["mean"]) == ("true", "55.0", "54.25")
    assert rows[4]["mean"] == "-1.5"
    assert rows[-1]["mean"] == "0.0001"
    assert rows[6]["text"] == "'-2+3"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\n@"])
def test_csv_texts_are_no_formulas(start):
    table = Table(
        f"{start}id", "", "", ("a",), (Column("c", "m"),), (Row((f"{start}1+1",), (Cell(text=f"{start}2"),)),)
    )
    (row,) = csv.DictReader(io.StringIO(csv_tables([table])))
    for name in ("table", "row", "text"):
        assert row[name].startswith(("'=", "'+", "'-", "'@"))


def unescaped(text):
    """LaTeX without its escaped characters and its commands for characters."""
    return re.sub(r"\\text[a-z]+\{\}|\\[{}$&#%_]", "", text)


def test_latex_rows_have_their_cells_and_groups_a_rule(table):
    lines = latex_table(table).splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert rows[0] == r" &  & \multicolumn{2}{c}{3B} & \multicolumn{1}{c}{} \\"
    assert r"\cmidrule(lr){3-4}" in lines
    assert rows[1] == r"model & name & $\Delta$CrowS & $\Delta$SS & p \\"
    assert rows[2] == (
        r"m & one & \textbf{3.25}$_{\pm 0.50}$ {\tiny(paper 4.00, agrees)} & "
        r"1.50$^{\dagger}$ {\tiny(LMS 55.0)} & $-$1.50$_{\pm 0.25}$ \\"
    )
    assert [unescaped(row).count("&") for row in rows[1:]] == [4, 4, 4]
    assert lines.count(r"\midrule") == 2
    assert r"\sbox0{\begin{tabular}{lp{0.3\linewidth}rrr}" in lines


def test_latex_of_hostile_names_has_balanced_braces_and_no_commands(table):
    text = latex_table(table)
    assert "\\input" not in text.replace(r"\textbackslash{}input", "")
    plain = unescaped(text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert "#" not in plain
    assert "%" not in plain.replace("% \\usepackage", "").replace("}%\n", "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[x]*", "{[}x{]}{*}"),  # after a row's \\ they would be its argument
        ("--flag", "{-}{-}flag"),
        ("a\\b", r"a\textbackslash{}b"),
        ("naïve 中", "naïve {[}U+4E2D{]}"),
        ("50% & $5", r"50\% \& \$5"),
    ],
)
def test_latex_text_is_printed_as_it_stands(text, shown):
    assert latex_text(text) == shown


def test_hostile_names_of_runs_and_settings_do_not_break_any_format(tmp_path):
    for name in ("plain", "=1+1 | <img src=x onerror=alert(1)>"):
        make_run(tmp_path / name, scenario="<b>|&\\end{table}", fed_alg="=HYPERLINK()", seed=len(name), lms=50.0)
    study = load_study([tmp_path])
    tables = build_tables(study, load_paper())
    page = "".join(map(markdown_table, tables))
    assert "<b>" not in page
    assert "<img" not in page
    for row in csv.reader(io.StringIO(csv_tables(tables))):
        assert len(row) == 14
        assert not row[1].startswith("=")
    for table in tables:
        assert latex_table(table).count(r"\end{table}") == 1
        for row in markdown_table(table).splitlines():
            if row.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", row)) == len(table.stub) + len(table.columns) + 1


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles_with_booktabs_and_graphicx_alone(table, tmp_path):
    (tmp_path / "table.tex").write_text(latex_table(table), encoding="utf-8")
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{table}\end{document}"
    (tmp_path / "page.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
