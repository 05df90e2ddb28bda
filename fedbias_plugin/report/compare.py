"""Bias curves of several runs side by side, from their ``metrics.jsonl``; more where their other files are there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import LONGEST_NAME, UserError, first_line, quoted
from fedbias_plugin.report.compare_layout import HALF_BAR, bar, fits, table_lines
from fedbias_plugin.report.compare_meaning import comparability, meaning
from fedbias_plugin.report.compared_runs import Run, block_of, common_view, heldout, last_measured, load_runs
from fedbias_plugin.report.paired import paired_lines
from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.terminal import wrapped
from fedbias_plugin.tracking.formatting import (
    ITEM_NAMES,
    MISSING,
    interval,
    length_note,
    number,
    term_note,
    with_interval,
)
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.tracking.repeated import repeated_warnings

RUN_FILE = "run.json"
BAR_SIZES = (HALF_BAR, HALF_BAR // 2, 0)
"""Half of a bar, characters; the first with which the runs stand side by side is taken."""
MOST_RUNS_WITH_BARS = 3
Cell = Callable[[RoundRecord], str]
"""What stands in a table for a round."""


@dataclass(frozen=True)
class Delta:
    """``|score - 50|``, percentage points, with the 95% interval that follows from the score's."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return number(self.value, 1) if self.low is None else with_interval(self.value, (self.low, self.high))


def delta(score: float, ci95: Sequence[float] | None) -> Delta:
    """The paper's Delta of a score.

    >>> delta(53.0, (48.0, 58.0))
    Delta(value=3.0, low=0.0, high=8.0)
    >>> delta(40.0, (35.0, 45.0))
    Delta(value=10.0, low=5.0, high=15.0)
    """
    value = abs(score - UNBIASED)
    if not ci95 or any(bound is None for bound in ci95):
        return Delta(value)
    ends = sorted(abs(bound - UNBIASED) for bound in ci95)
    return Delta(value, 0.0 if ci95[0] <= UNBIASED <= ci95[1] else ends[0], ends[1])


def compare(folders: Sequence[str | Path], *, ascii_only: bool = False, width: int | None = None) -> str:
    """The whole comparison as text: curves by round, final Deltas, and what the numbers mean.

    Args:
        folders: output folders of runs.
        ascii_only: draw with ASCII characters.
        width: columns of the terminal it is for; None for as many as it takes.

    Raises:
        UserError: as :func:`load_runs`.
    """
    runs = load_runs(folders)
    views = {name: common_view(runs, name) for name in ("crows_pairs", "stereoset")}
    text = "\n".join("\n".join([*section, ""]) for section in _sections(runs, views, ascii_only, width))
    text = wrapped(text, width)
    return _to_ascii(text) if ascii_only else text


def _sections(
    runs: Sequence[Run], views: Mapping[str, str], ascii_only: bool, width: int | None
) -> Iterator[list[str]]:
    sizes = BAR_SIZES if len(runs) <= MOST_RUNS_WITH_BARS else (0,)

    def score_cells(benchmark: str, key: str) -> list[Cell]:
        return [_score_cell(benchmark, views[benchmark], key, half, ascii_only) for half in sizes]

    def value_cell(read: Callable[[RoundRecord], float | None], digits: int) -> list[Cell]:
        return [lambda record: number(read(record), digits)]

    titles = {name: _title(runs, name, view) for name, view in views.items()}
    curves: list[tuple[str, list[Cell]]] = [
        (f"CrowS-Pairs score ({titles['crows_pairs']})", score_cells("crows_pairs", "score")),
        (f"StereoSet SS with LMS ({titles['stereoset']})", score_cells("stereoset", "ss")),
        ("Bias score of the global model (percentage points)", value_cell(lambda r: r.global_.bias_score, 2)),
        ("Client weights (* holds biased rows)", [_weights_cell]),
        ("Weight on poisoned clients (0 to 1)", value_cell(lambda r: r.weight_on_poisoned, 3)),
        ("Held-out loss on clean rows (nats per token)", value_cell(heldout, 4)),
    ]
    for title, cells in curves:
        if section := _curve(title, runs, cells, width):
            yield section
    yield _finals(runs, views, width)
    if settings := list(_settings(runs)):
        yield ["Settings that differ", *table_lines([["setting", *(run.name for run in runs)], *settings], width)]
    if paired := list(_paired(runs)):
        yield ["Difference to " + runs[0].name + " on the same items, paired, with 95% interval, p by Holm", *paired]
    yield from ([line] for line in comparability(runs, views))
    for run in runs:
        if found := repeated_warnings(run.rounds):
            yield [f"Warnings of {run.name}, as said in the last of their rounds", *(f"  {line}" for line in found)]
    yield [re.sub(r"\n +", " ", paragraph) if width else paragraph for paragraph in meaning(runs, views)]


def _score_cell(benchmark: str, view: str, key: str, half_bar: int, ascii_only: bool) -> Cell:
    """What shows a round's score with its interval, and a bar unless ``half_bar`` is 0; SS never without LMS."""

    def cell(record: RoundRecord) -> str:
        block = block_of(record, benchmark, view)
        if block is None:
            return MISSING
        text = f"{number(block.get(key), 1):>5} {interval(block.get('ci95')):<13}"
        if key == "ss":
            text += f" LMS {number(block.get('lms'), 1):>5}"
        return f"{text} {bar(block.get(key), half=half_bar, ascii_only=ascii_only)}" if half_bar else text

    return cell


def _title(runs: Sequence[Run], benchmark: str, view: str) -> str:
    """Which items, what 50 is, and where all runs agree what length alone gives, or how many terms there are."""
    blocks = [block for run in runs if (block := block_of(last_measured(run), benchmark, view))]
    headlines = [block for run in runs if (block := block_of(last_measured(run), benchmark, "headline"))]
    reductions = {str(block.get("reduction")) for block in headlines}
    notes = {length_note({**block, "reduction": "".join(reductions)}) for block in blocks}
    terms = {term_note(block) for block in blocks}
    shared = [found.pop() if len(found) == 1 else "" for found in (notes, terms)]
    return ", ".join(filter(None, [ITEM_NAMES.get(view, "headline items"), "50 = no preference", *shared]))


def _curve(title: str, runs: Sequence[Run], cells: Sequence[Cell], width: int | None) -> list[str] | None:
    """One measure: a row a round, a column a run; None when no run has it.

    ``cells`` are ways to show it, the widest first; the first that fits is taken.
    """
    by_round = [{record.round: record for record in run.rounds} for run in runs]
    numbers = sorted({number for records in by_round for number in records})
    header = ["round", *(run.name for run in runs)]
    rows: list[list[str]] = []
    for cell in cells:
        rows = [
            [str(number), *(cell(records[number]) if number in records else MISSING for records in by_round)]
            for number in numbers
        ]
        if fits([header, *rows], width):
            break
    if all(value == MISSING for row in rows for value in row[1:]):
        return None
    return [title, *table_lines([header, *rows], width)]


def _weights_cell(record: RoundRecord) -> str:
    parts = [
        f"{client}{'*' if row.poisoned_share else ''}: {number(row.weight, 3)}"
        for client, row in record.clients.items()
    ]
    return "  ".join(parts) or MISSING


def _finals(runs: Sequence[Run], views: Mapping[str, str], width: int | None) -> list[str]:
    header = ["run", "round", "Delta CrowS", "Delta SS", "LMS", "bias score", "on poisoned", "mass", "held-out loss"]
    rows = [header]
    for run in runs:
        last = last_measured(run)
        crows = block_of(last, "crows_pairs", views["crows_pairs"]) or {}
        stereo = block_of(last, "stereoset", views["stereoset"]) or {}
        rows.append(
            [
                run.name,
                str(last.round),
                _delta_text(crows.get("score"), crows.get("ci95")),
                _delta_text(stereo.get("ss"), stereo.get("ci95")),
                number(stereo.get("lms"), 1),
                number(last.global_.bias_score),
                number(last.weight_on_poisoned, 3),
                number(last.aggregation_mass, 3),
                number(heldout(last), 4),
            ]
        )
    return ["Final Delta = |score - 50|, percentage points, with 95% interval", *table_lines(rows, width)]


def _config(path: Path) -> dict[str, Any]:
    """The arguments in a ``run.json``."""
    try:
        config = json.loads(path.read_bytes())["config"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise UserError(f"{path}: holds no config that can be read ({first_line(error)}).") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: its config must be an object, found {quoted(config)}.")
    return config


def _settings(runs: Sequence[Run]) -> Iterator[list[str]]:
    """A row for every argument that is not the same in all runs, where the runs say (``run.json``)."""
    configs = []
    for run in runs:
        path = run.folder / RUN_FILE
        configs.append(_config(path) if path.is_file() else {})
    for name in sorted({name for config in configs for name in config} - {"output_dir"}):
        values = [_setting(config.get(name, MISSING)) for config in configs]
        if len(set(values)) > 1:
            yield [name, *values]


def _setting(value: Any) -> str:
    """A text as it stands, anything else as Python shows it; long ones cut."""
    return value if isinstance(value, str) and len(value) <= LONGEST_NAME else quoted(value)


def _paired(runs: Sequence[Run]) -> Iterator[str]:
    """Every later run against the first, at their last measured rounds."""
    first = runs[0]
    for run in runs[1:]:
        rounds = last_measured(first).round, last_measured(run).round
        for line in paired_lines(first.folder, rounds[0], run.folder, rounds[1]):
            yield f"  {run.name}: {line}"


def _delta_text(score: float | None, ci95: Sequence[float] | None) -> str:
    return MISSING if score is None else str(delta(score, ci95))


def _to_ascii(text: str) -> str:
    return text.replace(MISSING, "-").encode("ascii", "replace").decode("ascii")
