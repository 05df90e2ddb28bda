"""``fedbias report``: from folders of runs to one HTML page, the same as Markdown, and tables as CSV and LaTeX.

The page has styles and pictures within, no script, and takes nothing from a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

from fedbias_plugin import __version__
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import disk_errors_named, whole_folder, write_bytes_atomic
from fedbias_plugin.study.about import caveats, conclusion, findings, lead, what_was_run
from fedbias_plugin.study.comparisons import answer_all
from fedbias_plugin.study.drawing import figure_png, panel_svgs
from fedbias_plugin.study.figures import draw_figures
from fedbias_plugin.study.frame import Study, load_study
from fedbias_plugin.study.pivot import pivot_tables
from fedbias_plugin.study.shares import share_tables
from fedbias_plugin.study.study_file import StudyFile, find_study_file, load_study_file
from fedbias_plugin.study.table import csv_table, latex_table, markdown_table, markdown_text
from fedbias_plugin.study.tables import answers_table, arm_tables, items_table, pair_tables, warnings_table
from fedbias_plugin.study.verdicts import CONTRADICTED, PARTLY, SUPPORTED
from fedbias_plugin.study.words import TEMPLATES, words

PAGE = "report.html"
LIBRARIES = ("matplotlib", "jinja2")
MARKS = {SUPPORTED: ("✓", "yes"), PARTLY: ("✓", "yes"), CONTRADICTED: ("✗", "no")}
OWN_FILES = re.compile(r"report\.html|report\.md|figures/[a-z0-9_]+\.png|tables/[a-z0-9_-]+\.(csv|tex)")


def write_report(
    folders: Sequence[str | Path],
    output: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    study_file: str | None = None,
) -> Path:
    """Read the runs of ``folders`` and write their report.

    The report appears whole: an older one stays until the new one is written, and is replaced then. Equal runs give
    equal bytes.

    Args:
        folders: sweeps, runs, or folders that hold runs.
        output: folder of the report; ``report`` in the first of ``folders`` when absent.
        say: is told how far it is, a line at a time.
        study_file: what the study asks; when absent, see :func:`find_study_file`.

    Returns:
        The page.

    Raises:
        UserError: no run can be read, a library is missing, ``output`` holds something that is not a report, or it
            cannot be written.
    """
    require_libraries()
    file = load_study_file(find_study_file(folders, study_file))
    target = (Path(output) if output is not None else Path(folders[0]) / "report").resolve()
    check_output(target)
    study = load_study(folders).called(file.names, file.arms).ordered(file.order)
    file.check_names((name for arm in study.arms for name in arm.facts), study.metrics)
    known = caveats(study, folders)
    say(f"{file.title}. {lead(study)}")
    for line in (*known, *study.warnings):
        say(f"  {line}")
    say("tables and figures ...")
    files = report_files(study, file, known)
    with disk_errors_named(target), whole_folder(target) as folder:
        for name, content in files.items():
            write_bytes_atomic(folder / name, content)
    return target / PAGE


def report_files(study: Study, file: StudyFile, known: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file of a report: its path in the folder, and its bytes; ``known``: what must be known first."""
    answers, silent = answer_all(study, file)
    main = [answers_table(answers)] if answers else []
    of_pairs = [*share_tables(answers), *pair_tables(answers)]
    tables = [*pivot_tables(study, file), *of_pairs, *arm_tables(study), *items_table(answers)]
    of_runs = list(warnings_table(study))
    figures = draw_figures(study, file, answers)
    page = {
        "title": file.title,
        "question": file.question,
        "lead": lead(study),
        "conclusion": conclusion(answers),
        "caveats": known,
        "answers": main[0] if main else None,
        "findings": findings(answers),
        "notes": silent,
        "figures": figures,
        "tables": tables,
        "warnings": study.warnings,
        "run_warnings": of_runs[0] if of_runs else None,
        "facts": what_was_run(study),
    }
    files = {PAGE: html_page(page).encode(), "report.md": markdown_page(page).encode()}
    for table in (*main, *tables, *of_runs):
        files[f"tables/{table.id}.csv"] = csv_table(table).encode()
        files[f"tables/{table.id}.tex"] = latex_table(table).encode()
    return files | {f"figures/{figure.name}.png": figure_png(figure) for figure in figures}


def require_libraries() -> None:
    """Fail at once, with the line that mends it, where a library of the report is missing.

    Raises:
        UserError: names the missing ones.
    """
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
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


def html_page(page: Mapping[str, Any]) -> str:
    """The page of what :func:`report_files` found; what comes from files is escaped."""
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
