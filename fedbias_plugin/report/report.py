"""``fedbias report``: from folders of runs to one page, the same as Markdown, and tables as CSV and LaTeX."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import disk_errors_named, whole_folder, write_bytes_atomic
from fedbias_plugin.report.caveats import caveats
from fedbias_plugin.report.claims import judge_claims
from fedbias_plugin.report.figures.drawing import Figure, figure_png
from fedbias_plugin.report.figures.every_figure import draw_figures
from fedbias_plugin.report.findings import key_findings
from fedbias_plugin.report.markdown_page import markdown_page
from fedbias_plugin.report.page import Contents, html_page
from fedbias_plugin.report.paper import Paper, load_paper, paper_note
from fedbias_plugin.report.study import Study, load_study
from fedbias_plugin.report.table_formats import csv_tables, latex_table
from fedbias_plugin.report.table_model import Table
from fedbias_plugin.report.tables import build_tables
from fedbias_plugin.report.what_was_run import counts, facts, lead, split_warnings

PAGE = "report.html"
LIBRARIES = ("matplotlib", "jinja2", "scipy")
OWN_FILES = re.compile(r"report\.html|report\.md|figures/[a-z0-9_]+\.png|tables/[a-z0-9_-]+\.(csv|tex)")


def write_report(
    folders: Sequence[str | Path], output: str | Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Path:
    """Read the runs of ``folders`` and write their report.

    The report appears whole: an older one stays until the new one is written, and is replaced then. Equal runs give
    equal bytes.

    Args:
        folders: sweeps, runs, or folders that hold runs.
        output: folder of the report; ``report`` in the first of ``folders`` when absent.
        say: is told how far it is, a line at a time.

    Returns:
        The page.

    Raises:
        UserError: no run can be read, a library is missing, ``output`` holds something that is not a report, or it
            cannot be written.
    """
    require_libraries()
    target = (Path(output) if output is not None else Path(folders[0]) / "report").resolve()
    check_output(target)
    study, paper = load_study(folders), load_paper()
    known = caveats(study, folders)
    say(lead(study))
    for line in (*known, *study.warnings):
        say(f"  {line}")
    say("tables and figures ...")
    files = report_files(study, paper, known)
    with disk_errors_named(target), whole_folder(target) as folder:
        for name, content in files.items():
            write_bytes_atomic(folder / name, content)
    return target / PAGE


def report_files(study: Study, paper: Paper | None, known: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of a report: its path in the folder, and its bytes; ``known``: what must be known first."""
    tables = build_tables(study, paper)
    figures, left_out = draw_figures(study)
    results, run_warnings = split_warnings(tables)
    contents = Contents(
        lead=lead(study),
        caveats=known,
        counts=counts(study),
        paper_note=paper_note(paper) if paper else "",
        findings=key_findings(judge_claims(study, paper) if paper else [], results),
        tables=results,
        figures=figures,
        left_out=left_out,
        warnings=study.warnings,
        run_warnings=run_warnings,
        facts=facts(study),
    )
    pictures = {figure.name: f"figures/{figure.name}.png" for figure in figures}
    texts = {PAGE: html_page(contents), "report.md": markdown_page(contents, pictures)} | _table_files(tables)
    return {name: text.encode() for name, text in texts.items()} | _pictures(figures, pictures)


def require_libraries() -> None:
    """Fail at once, with the line that mends it, where a library of the report is missing.

    Raises:
        UserError: names the missing ones.
    """
    missing = []
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"the report needs {', '.join(missing)}: pip install {' '.join(missing)}")


def check_output(target: Path) -> None:
    """Refuse to write over anything that is not a report.

    Raises:
        UserError: ``target`` is a file, or holds a file that no report has.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"{target}: is a file; --output names a folder.")
    for path in sorted(target.rglob("*")):
        name = path.relative_to(target).as_posix()
        is_own = name in ("figures", "tables") if path.is_dir() else OWN_FILES.fullmatch(name)
        if path.is_symlink() or not is_own:
            raise UserError(f"{target}: holds {name}, which is not of a report; give an empty or a new folder.")


def _table_files(tables: Sequence[Table]) -> dict[str, str]:
    files = {}
    for table in tables:
        files[f"tables/{table.id}.csv"] = csv_tables([table])
        files[f"tables/{table.id}.tex"] = latex_table(table)
    return files


def _pictures(figures: Sequence[Figure], names: Mapping[str, str]) -> dict[str, bytes]:
    return {names[figure.name]: figure_png(figure) for figure in figures}
