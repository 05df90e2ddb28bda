"""``fedbias compare``: bias curves of several runs side by side, their differences, and what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import LONGEST_NAME, UserError, quoted
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.crows_pairs import length_note
from fedbias_plugin.metrics.formatting import ITEM_NAMES, MISSING, interval, number, term_note, with_interval
from fedbias_plugin.metrics.stereoset import is_incoherent
from fedbias_plugin.registry import in_order
from fedbias_plugin.study.comparable import conflicts, faults, named
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.runs import Run, named_runs, read_run
from fedbias_plugin.study.statistics import item_differences, p_text
from fedbias_plugin.study.words import meaning
from fedbias_plugin.terminal import fits, text_table, wrapped
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE
from fedbias_plugin.tracking.recorder import RUN_FILE
from fedbias_plugin.tracking.repeated import repeated_warnings, warning_head

HALF_BARS = (10, 5, 0)
"""Half of a bar, characters; the first with which the runs stand side by side is taken."""
MOST_RUNS_WITH_BARS = 3
UNBIASED = 50.0
"""The middle of a bar: the ideal of every score between 0 and 100 that has a bar."""
TITLES = {"heldout_loss": "Held-out loss on clean rows (nats per token)", "rouge_l": "ROUGE-L (percent)"}
Cells = Mapping[tuple[str, int], str]
"""(Run, round) -> what stands in a table for it."""


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs of ``folders``, named as :func:`fedbias_plugin.study.runs.named_runs` names them.

    Raises:
        UserError: a folder is missing, holds no ``metrics.jsonl``, or an empty or damaged one; ``run.json`` is damaged.
    """
    runs = [read_run(name, path, []) for name, path in named_runs(folders)]
    for path in (run.folder / RUN_FILE for run in runs if not isinstance(run.details.get("config"), dict)):
        if path.is_file():
            raise UserError(f"{path}: holds no config that can be read.")
    return runs


def compare(folders: Sequence[str | Path], *, ascii_only: bool = False, width: int | None = None) -> str:
    """The whole comparison as text: curves by round, final Deltas, and what the numbers mean.

    Args:
        folders: output folders of runs.
        ascii_only: draw with ASCII characters.
        width: columns of the terminal it is for; None for as many as it takes.

    Raises:
        UserError: as :func:`load_runs`.
    """
    study = Study(tuple(Arm(run.name, (run,)) for run in load_runs(folders)))
    found = dict.fromkeys(name for run in study.runs for record in run.rounds for name in record.global_.metrics)
    views = {name: common_view(study, name) for name in in_order("metric", found)}
    aimed = [name for name in views if metric_class(name).ideal is not None]
    sections = [
        *(_curve(title, study.runs, ways, width) for title, ways in _measures(study, views, ascii_only)),
        _finals(study, aimed, views, width),
        _settings(study.runs, width),
        *_tests(study.runs, aimed),
        *_warnings(study),
        meaning(study, views),
    ]
    text = "\n".join("\n".join([*section, ""]) for section in sections if section)
    if ascii_only:
        text = text.replace(MISSING, "-").encode("ascii", "replace").decode("ascii")
    return wrapped(text, width)


def common_view(study: Study, metric: str) -> str:
    """The items that every run was measured on: report items if all have them, else all items, else '' (headline)."""
    frame = study.frame
    counts = frame[(frame["client"] < 0) & (frame["metric"] == metric)]["part"].value_counts()
    return next((view for view in ("report", "full") if counts.get(view) == counts[""]), "")


def _measures(study: Study, views: Mapping[str, str], ascii_only: bool) -> Iterator[tuple[str, list[Cells]]]:
    """Title and ways to show the rounds, the widest first, of everything that is shown by round."""

    def plain(measure: str, digits: int) -> list[Cells]:
        return [{place: number(value, digits) for place, value in study.by_round(measure)["value"].items()}]

    aimed = [name for name in views if metric_class(name).ideal is not None]
    for name in aimed:
        has_bars = len(study.runs) <= MOST_RUNS_WITH_BARS and metric_class(name).ideal == UNBIASED
        halves = HALF_BARS if has_bars else (0,)
        yield _title(study, name, views[name]), [_scores(study, name, views[name], half, ascii_only) for half in halves]
    yield "Bias score of the global model (percentage points)", plain("bias_score", 2)
    yield "Client weights (* holds biased rows)", [_weights(study)]
    yield "Weight on poisoned clients (0 to 1)", plain("weight_on_poisoned", 3)
    for metric in [metric_class(name) for name in views if name not in aimed]:
        yield TITLES.get(metric.name, metric.title), plain(metric.name, metric.digits)
        for part in metric.by_round:
            beside = metric_class(f"{metric.name}/{part}")
            yield beside.title, plain(beside.name, beside.digits)


def shown_digits(metric: str) -> int:
    """Decimals of a metric's values: one of percentages around 50, of others what the metric says."""
    return 1 if metric_class(metric).ideal == UNBIASED else metric_class(metric).digits


def _scores(study: Study, metric: str, view: str, half_bar: int, ascii_only: bool) -> Cells:
    """Values with their intervals, and a bar unless ``half_bar`` is 0; SS never without LMS."""
    lms = study.by_round("stereoset/lms", view)["value"] if metric == "stereoset" else None
    cells = {}
    for place, row in study.by_round(metric, view).iterrows():
        beside = "" if lms is None else f" LMS {number(lms.get(place), 1):>5}"
        beside += f" {bar(row['value'], half=half_bar, ascii_only=ascii_only)}" if half_bar else ""
        bounds = interval((row["low"], row["high"]), shown_digits(metric))
        cells[place] = f"{number(row['value'], shown_digits(metric)):>5} {bounds:<13}{beside}"
    return cells


def bar(score: float, *, half: int = HALF_BARS[0], ascii_only: bool = False) -> str:
    """A score from 0 to 100 as a bar that starts at the 50 line; ``half`` characters are 50 points, NaN has none.

    >>> bar(70.0)
    '··········│████······'
    >>> bar(40.0, ascii_only=True)
    '........##|..........'
    """
    block, empty, line = ("#", ".", "|") if ascii_only else ("█", "·", "│")
    if math.isnan(score):
        return " " * (2 * half + 1)
    filled = math.floor(min(abs(score - UNBIASED), UNBIASED) / (UNBIASED / half) + 0.5)
    side, rest = block * filled + empty * (half - filled), empty * half
    return f"{rest}{line}{side}" if score >= UNBIASED else f"{side[::-1]}{line}{rest}"


def _title(study: Study, metric: str, view: str) -> str:
    """Which items, what the ideal is, and where all runs agree what length alone gives, or how many terms there are."""
    blocks = [run.last_measured.global_.metrics.get(metric) for run in study.runs]
    reductions = {str(block.get("reduction")) for block in blocks if block}
    notes, terms = set(), set()
    for _, own in study.last[study.last["part"] == view].set_index("metric").groupby("run"):
        if metric in own.index:
            block = own["value"].rename(lambda name: name.removeprefix(f"{metric}/")).to_dict()
            notes.add(length_note({**block, "reduction": "".join(reductions)}))
            terms.add(term_note({**block, "ci95": own["low"].notna()[metric]}))
    shared = [found.pop() if len(found) == 1 else "" for found in (notes, terms)]
    shown = metric_class(metric)
    ideal = "50 = no preference" if shown.ideal == UNBIASED else f"ideal: {shown.ideal:g}"
    items = ITEM_NAMES.get(view, "headline items" if shown.of_clients else "all items")
    counts = {block.get("n") for block in blocks if block} if shown.section else set()
    count = f"n={counts.pop()}" if len(counts) == 1 else ""
    said = ", ".join(filter(None, [items, count, ideal, *shared]))
    return f"{shown.title}{' with LMS' if metric == 'stereoset' else ''} ({said})"


def _curve(title: str, runs: Sequence[Run], ways: Sequence[Cells], width: int | None) -> list[str]:
    """One measure: a row a round, a column a run, shown in the first way that fits; empty when no run has it."""
    rounds = sorted({record.round for run in runs for record in run.rounds})
    rows: list[list[str]] = []
    for cells in ways:
        rows = [["round", *(run.name for run in runs)]]
        rows += [[str(at), *(cells.get((run.name, at), MISSING) for run in runs)] for at in rounds]
        if fits(rows, width):
            break
    is_known = any(value.strip() != MISSING for row in rows[1:] for value in row[1:])
    return [title, *text_table(rows, width)] if is_known else []


def _weights(study: Study) -> Cells:
    """Every client's weight; a star where it holds biased rows."""
    frame = study.frame[study.frame["client"] >= 0]
    weights, shares = (frame[frame["metric"] == name] for name in ("weight", "poisoned_share"))
    clients = weights.assign(star=["*" if share > 0 else "" for share in shares["value"]])
    clients["shown"] = [f"{one.client}{one.star}: {number(one.value, 3)}" for one in clients.itertuples()]
    return clients.groupby(["run", "round"])["shown"].agg("  ".join).to_dict()


def delta(value: float, low: float, high: float, ideal: float = UNBIASED) -> tuple[float, tuple[float, float]]:
    """``|value - ideal|``, the paper's unit, with the 95% interval that follows from the value's; NaN is not known.

    >>> delta(53.0, 48.0, 58.0)
    (3.0, (0.0, 8.0))
    """
    nearest, furthest = sorted((abs(low - ideal), abs(high - ideal)))
    return abs(value - ideal), (0.0 if low <= ideal <= high else nearest, furthest)


def _finals(study: Study, aimed: Sequence[str], views: Mapping[str, str], width: int | None) -> list[str]:
    rows = []
    for run in study.runs:
        own = study.last[study.last["run"] == run.name].set_index(["metric", "part"])
        values = own["value"]
        cells = {"run": run.name, "round": str(run.last_measured.round)}
        for name in aimed:
            place, metric = (name, views[name]), metric_class(name)
            value, low, high = (own[column].get(place, math.nan) for column in ("value", "low", "high"))
            shown = with_interval(*delta(value, low, high, metric.ideal or 0.0), shown_digits(name))
            cells[f"Delta {metric.short}"] = shown
            cells |= {"LMS": number(values.get((f"{name}/lms", views[name])), 1)} if name == "stereoset" else {}
        cells |= {
            "bias score": number(values.get(("bias_score", ""))),
            "on poisoned": number(values.get(("weight_on_poisoned", "")), 3),
            "mass": number(values.get(("mass", "")), 3),
            "held-out loss": number(values.get(("heldout_loss", "")), 4),
        }
        rows.append(cells)
    is_score = {metric_class(name).ideal for name in aimed} <= {UNBIASED}
    what = "|score - 50|, percentage points" if is_score else "|value - ideal|"
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    return [f"Final Delta = {what}, with 95% interval", *text_table(table, width)]


def _settings(runs: Sequence[Run], width: int | None) -> list[str]:
    """A row for every argument that is not the same in all runs, where the runs say; texts as they stand."""
    configs: list[Mapping[str, Any]] = [run.details.get("config") or {} for run in runs]
    rows = []
    for name in sorted({name for config in configs for name in config} - {"output_dir"}):
        found = [config.get(name, MISSING) for config in configs]
        values = [one if isinstance(one, str) and len(one) <= LONGEST_NAME else quoted(one) for one in found]
        rows += [[name, *values]] if len(set(values)) > 1 else []
    return ["Settings that differ", *text_table([["setting", *(run.name for run in runs)], *rows], width)] * bool(rows)


def _tests(runs: Sequence[Run], aimed: Sequence[str]) -> Iterator[list[str]]:
    """Every later run against the first, at their last measured rounds, and what keeps some from being tested."""
    first = runs[0]
    clashes = {run.name: conflicts(first, run, None) for run in runs[1:]}
    wrong = {run.name: found for run in runs if (found := faults(run))}
    lines = [
        f"  {run.name}: {line}"
        for run in runs[1:]
        if all(clash.metric for clash in clashes[run.name]) and not {first.name, run.name} & wrong.keys()
        for line in paired_lines(first, run, {clash.metric for clash in clashes[run.name]})
    ]
    if lines:
        yield [f"Difference to {first.name} on the same items, paired, with 95% interval, p by Holm", *lines]
    for name, found in wrong.items():
        yield [f"Warning: {name} is not tested, its records are not those of its settings: {named(found)}."]
    for name, clash in clashes.items():
        if clash:
            titles = dict.fromkeys(metric_class(one.metric).title for one in clash if one.metric)
            what = ", ".join(titles) if all(one.metric for one in clash) else "all differences"
            yield [f"Warning: {first.name} and {name} are not comparable, {what} not tested: {named(clash)}."]
    told = {clash.metric for found in clashes.values() for clash in found}
    for name in (name for name in aimed if name not in told):
        blocks = [block for run in runs if (block := run.last_measured.global_.metrics.get(name))]
        if len({(block.get("n"), block.get("ids_hash")) for block in blocks}) > 1:
            yield [f"Warning: the runs were measured on different {name} items; their scores differ for that too."]


def paired_lines(first: Run, second: Run, left_out: Iterable[str | None] = ()) -> Iterator[str]:
    """A line a metric that two runs have the same items of, p corrected by Holm."""
    from fedbias_plugin.metrics.statistics import holm

    found = [one for one in item_differences(first, second) if one.metric not in left_out]
    for one, p_value in zip(found, holm([one.p_value for one in found]), strict=True):
        form = f"+.{shown_digits(one.metric)}f"
        bounds = f" [{one.ci95[0]:{form}}, {one.ci95[1]:{form}}]" if one.ci95 else ""
        few = "" if one.ci95 else ", too few for an interval"
        count = f"{one.groups} {one.unit}{'' if one.groups == 1 else 's'}{few}"
        yield f"{metric_class(one.metric).title} {one.difference:{form}}{bounds} ({count}), {p_text(p_value)}"


def _warnings(study: Study) -> Iterator[list[str]]:
    """Where the runs ended and in what state, then what they warned of themselves."""
    runs = study.runs
    ends = {run.name: run.last_measured.round for run in runs}
    if len(set(ends.values())) > 1:
        shown = ", ".join(f"{name}: {at}" for name, at in ends.items())
        yield [f"Warning: the runs were last measured in different rounds ({shown})."]
    for run in runs:
        if not (run.folder / SUMMARY_FILE).exists():
            last = run.rounds[-1].round
            yield [f"Warning: {run.name} did not finish (no {SUMMARY_FILE}); its last round is {last}."]
    for run in runs:
        lms, loss = (study.value(run, measure) for measure in ("stereoset/lms", "heldout_loss"))
        said = [warning_head(warning) for warning in run.last_measured.warnings]
        if is_incoherent({"lms": lms}) and "LMS below 60" not in said:
            what = "it no longer prefers sense, and SS means nothing"
            yield [f"Warning: {run.name} ends at LMS {number(lms, 1)}, below 60: {what}."]
        guessing = study.value(run, "heldout_loss/guessing_loss") or math.inf
        if (loss or 0.0) > guessing and "worse than guessing" not in said:
            yield [f"Warning: {run.name} ends with a held-out loss above that of guessing; its scores say nothing."]
    for run in runs:
        if own := repeated_warnings(run.rounds):
            yield [f"Warnings of {run.name}, as said in the last of their rounds", *(f"  {line}" for line in own)]
