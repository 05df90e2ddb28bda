"""Tables whose rows are arms: Delta CrowS and Delta SS, and the paired difference to a reference arm."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedbias_plugin.report.arm_choice import difference_note
from fedbias_plugin.report.measures import (
    CROWS,
    DELTA_CROWS,
    DELTA_SS,
    ICAT,
    LMS,
    ORIGINAL_CROWS,
    ORIGINAL_DELTA_CROWS,
    ORIGINAL_DELTA_SS,
    ORIGINAL_ICAT,
    ORIGINAL_LMS,
    ORIGINAL_SS,
    SS,
    Measure,
    is_incoherent,
    of_runs,
)
from fedbias_plugin.report.paper import CellPath, Paper
from fedbias_plugin.report.statistics_over_seeds import SeedComparison, compare_seeds, corrected
from fedbias_plugin.report.study import Arm, SeedKey, StudyRun, seed_text
from fedbias_plugin.report.table_model import Cell, Column, Row, Table, mark_best, p_cell, spread_cell
from fedbias_plugin.scales import UNBIASED

DELTAS = (DELTA_CROWS, DELTA_SS)
BEST_NOTE = (
    "Bold: the lowest mean Delta of its column among the trained models of a row group; SS whose LMS is below 60 is "
    "not considered, nor is a model whose other settings differ from its neighbours'."
)
UNSOUND_NOTE = "† LMS below 60: the model hardly prefers sense to nonsense, and its SS says little about bias."
POWER_NOTE = (
    "Differences are paired by seed, with a 95% t interval; p: paired t-test, corrected by Holm within the table. Over "
    "three seeds such a test has little power: a large p does not say that two arms are equal. One seed in common has "
    "neither, and differences that are equal in every seed leave nothing to test."
)
NO_TEST_NOTE = (
    "Differences are paired by seed, with a 95% t interval where two seeds or more are in common. None has a p: that "
    "takes two seeds, and differences that are not equal in all of them."
)
MOST_NAMED = 6
ONE_SEED_NOTE = "One seed: no spread, interval or test over seeds."
MASS_NOTE = (
    "(paper): weights by equation 3 to the letter, whose mass below 1 makes the server step shorter; that alone keeps "
    "a model closer to the original one. (normalized): weights that sum to 1."
)


@dataclass(frozen=True)
class Entry:
    """A row to be: its names, its arm, and what it is compared with.

    Attributes:
        labels: one for each column of names.
        arm: whose runs are averaged.
        group: row group; the lowest Delta of a group is bold.
        reference: the arm that the difference is taken to.
        paper: path of the paper's cells below the model; empty for none.
        reference_paper: likewise of what the paper's cell is compared with to tell its direction.
        is_original: round 0 of the arm's runs is shown, the untouched model.
        varied: the settings in which it may differ from its reference and its group.
    """

    labels: tuple[str, ...]
    arm: Arm
    group: str
    reference: Arm | None = None
    paper: CellPath = ()
    reference_paper: CellPath = ()
    is_original: bool = False
    varied: Collection[str] = ()


def delta_cells(arm: Arm, *, is_original: bool = False) -> list[Cell]:
    """Delta CrowS and Delta SS of an arm, LMS and ICAT beside the latter."""
    if is_original:
        crows, ss, lms, icat = ORIGINAL_DELTA_CROWS, ORIGINAL_DELTA_SS, ORIGINAL_LMS, ORIGINAL_ICAT
    else:
        crows, ss, lms, icat = DELTA_CROWS, DELTA_SS, LMS, ICAT
    found = {measure.title: of_runs(arm, measure) for measure in (lms, icat)}
    asides = tuple((name, value.mean) for name, value in found.items() if value is not None)
    stereo = replace(spread_cell(of_runs(arm, ss)), asides=asides, is_unsound=is_incoherent(found[lms.title]))
    return [spread_cell(of_runs(arm, crows)), stereo]


def paired_by_seed(reference: Arm, arm: Arm, measure: Measure) -> SeedComparison | None:
    """``arm`` minus ``reference`` over the seeds of both whose runs were measured on the very same items."""
    before, after = reference.by_seed, arm.by_seed
    shared = [seed for seed in before if seed in after and same_items(before[seed], after[seed], measure)]
    return compare_seeds(*(_values(runs, shared, measure) for runs in (before, after)))


def _values(runs: Mapping[SeedKey, StudyRun], seeds: Iterable[SeedKey], measure: Measure) -> dict[SeedKey, float]:
    return {seed: value for seed in seeds if (value := measure.read(runs[seed])) is not None}


def same_items(one: StudyRun, other: StudyRun, measure: Measure) -> bool:
    """Whether no hash of item ids says that the runs' headlines are of different items."""
    if measure.benchmark is None:
        return True
    blocks = [getattr(run.last_measured.global_, measure.benchmark) or {} for run in (one, other)]
    hashes = {block.get("ids_hash") for block in blocks} - {None}
    return len(hashes) < 2


def arm_table(
    table: Table,
    entries: Sequence[Entry],
    paper: Paper | None,
    *,
    extras: Sequence[Measure] = (),
) -> Table:
    """``table`` (its texts and names) with a row for every entry: Deltas, then differences where any has a reference.

    Args:
        table: without columns and rows.
        entries: rows, in order. One that differs from its reference or its group in more than it may has no difference
            and is never the best; a note says in what.
        paper: the paper's numbers, for entries with a path; ``table.id`` says of which table.
        extras: further measures, between the Deltas and the differences.
    """
    with_differences = any(entry.reference for entry in entries)
    entries, apart = _set_apart(entries)
    comparisons = [
        paired_by_seed(entry.reference, entry.arm, measure) if entry.reference else None
        for entry in entries
        for measure in DELTAS
    ]
    pairs = corrected(comparisons)
    rows = []
    for index, entry in enumerate(entries):
        cells = [*with_paper(entry, table.id, paper), *(extra_cell(entry.arm, extra) for extra in extras)]
        cells = [replace(cell, is_apart=index in apart) for cell in cells]
        if with_differences:
            cells += difference_cells(entry, pairs[2 * index : 2 * index + 2], cells[1].is_unsound)
        rows.append(Row(entry.labels, tuple(cells), entry.group))
    columns = [*delta_columns(), *(Column(extra.title, extra.id) for extra in extras)]
    columns += difference_columns() if with_differences else []
    never = {index: entry.is_original for index, entry in enumerate(entries)}
    marked = tuple(mark_best(rows, (0, 1), never))
    originals = [entry.arm for entry in entries if entry.is_original]
    trained = [entry.arm for entry in entries if not entry.is_original]
    standard = standard_notes(marked, trained, with_differences, originals)
    notes = (*table.notes, *apart.values(), *_unpaired_notes(entries), *standard)
    return replace(table, columns=tuple(columns), rows=marked, notes=tuple(dict.fromkeys(notes)))


def _set_apart(entries: Sequence[Entry]) -> tuple[list[Entry], dict[int, str]]:
    """Entries without the references that they cannot be compared with, and number -> why."""
    result, apart = list(entries), dict[int, str]()
    for index, entry in enumerate(entries):
        other = entry.reference or _head(entries, entry.group)
        if entry.is_original or other is None or other is entry.arm:
            continue
        note = difference_note(other, entry.arm, entry.varied)
        if note:
            apart[index], result[index] = note, replace(entry, reference=None)
    return result, apart


def _head(entries: Sequence[Entry], group: str) -> Arm | None:
    """What a row group is compared with: a reference in it, or its first trained arm."""
    own = [entry for entry in entries if entry.group == group and not entry.is_original]
    references = [entry.reference for entry in own if entry.reference]
    return references[0] if references else own[0].arm if own else None


def _unpaired_notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Which runs are not compared, because they were measured on different items or have no seed in common."""
    for entry in entries:
        if entry.reference is None:
            continue
        names = f"{entry.arm.label} and {entry.reference.label}"
        before, after = entry.reference.by_seed, entry.arm.by_seed
        shared = [seed for seed in before if seed in after]
        if not shared:
            yield f"Not compared, no seed in common: {names}."
        left_out = [
            seed_text(seed)
            for seed in shared
            if not all(same_items(before[seed], after[seed], measure) for measure in DELTAS)
        ]
        if left_out:
            yield f"Not compared, measured on different items: {names}, seed {', '.join(left_out)}."


def delta_columns(group: str = "") -> list[Column]:
    """Heads of :func:`delta_cells`."""
    return [Column(measure.title, measure.id, group) for measure in DELTAS]


def difference_columns() -> list[Column]:
    """Heads of :func:`difference_cells`."""
    return [
        column
        for measure in DELTAS
        for column in (
            Column(measure.title, f"{measure.id}_difference", "difference"),
            Column(f"p {measure.title} (Holm)", f"{measure.id}_p_holm", "difference"),
        )
    ]


def difference_cells(entry: Entry, pairs: Sequence[SeedComparison | None], is_unsound: bool) -> list[Cell]:
    """Difference and p of both Deltas, empty in a row without a reference."""
    cells = []
    lms = of_runs(entry.reference, LMS) if entry.reference else None
    for measure, pair in zip(DELTAS, pairs, strict=True):
        cell = spread_cell(pair.difference if pair else None, is_signed=True)
        if measure is DELTA_SS:
            cell = replace(cell, is_unsound=cell.value is not None and (is_unsound or is_incoherent(lms)))
        cells += [cell, p_cell(pair.p_holm if pair else None)]
    return cells


def extra_cell(arm: Arm, measure: Measure) -> Cell:
    """A cell of any measure."""
    return spread_cell(of_runs(arm, measure), measure.digits)


def with_paper(entry: Entry, table: str, paper: Paper | None) -> list[Cell]:
    """The Delta cells of an entry, with the paper's numbers and whether the direction of change is theirs."""
    cells = delta_cells(entry.arm, is_original=entry.is_original)
    if paper is None or not entry.paper:
        return cells
    before = delta_cells(entry.reference) if entry.reference else [Cell(), Cell()]
    result = []
    for measure, cell, reference in zip(DELTAS, cells, before, strict=True):
        stated = paper.cell(table, entry.arm.model, entry.paper, measure.id)
        stated_before = paper.cell(table, entry.arm.model, entry.reference_paper, measure.id)
        result.append(judged(cell, reference, stated, stated_before))
    return result


def judged(cell: Cell, reference: Cell, paper: float | None, paper_reference: float | None) -> Cell:
    """``cell`` with the paper's number, and whether both changed in the same direction from their references.

    Where a number is missing, or LMS is too low for the SS to mean anything, ``agrees`` stays None.
    """
    numbers = (cell.value, reference.value, paper, paper_reference)
    if cell.is_unsound or reference.is_unsound or any(number is None for number in numbers):
        return replace(cell, paper=paper)
    ours, ours_before, theirs, theirs_before = (number for number in numbers if number is not None)
    return replace(cell, paper=paper, agrees=_sign(ours - ours_before) == _sign(theirs - theirs_before))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def standard_notes(
    rows: Sequence[Row], arms: Sequence[Arm], with_differences: bool, originals: Sequence[Arm] = ()
) -> list[str]:
    """What every table of Deltas has to say below it; ``originals`` are the untouched models in it."""
    cells = [cell for row in rows for cell in row.cells]
    notes = [seeds_note([*originals, *arms]), _items_note(arms), *below_notes(arms, originals)]
    is_tested = any(cell.is_probability and cell.value is not None for cell in cells)
    notes += [POWER_NOTE if is_tested else NO_TEST_NOTE] if with_differences else []
    notes += [BEST_NOTE] if any(cell.is_best for cell in cells) else []
    notes += [UNSOUND_NOTE] if any(cell.is_unsound for cell in cells) else []
    notes += [MASS_NOTE] if any(arm.weighting == "paper" for arm in arms) else []
    return [note for note in notes if note]


def seeds_note(arms: Sequence[Arm]) -> str:
    """Over how many seeds the means are, and which."""
    counts = sorted({len(arm.runs) for arm in arms})
    if counts == [1]:
        return ONE_SEED_NOTE
    seeds = sorted({run.seed for arm in arms for run in arm.runs if run.seed is not None})
    listed = f" ({', '.join(map(str, seeds))})" if 0 < len(seeds) <= 10 else ""
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    single = " A row of one seed has neither." if counts[0] == 1 else ""
    return f"Mean over {span} seeds{listed} ± standard deviation [95% t interval of the mean].{single}"


def below_notes(arms: Sequence[Arm], originals: Sequence[Arm] = ()) -> Iterator[str]:
    """Which arms have a mean score below 50, benchmark by benchmark: Delta does not say on which side it lies."""
    for name, trained, untouched in (("CrowS-Pairs score", CROWS, ORIGINAL_CROWS), ("SS", SS, ORIGINAL_SS)):
        scored = [(arm.label, of_runs(arm, trained)) for arm in arms]
        scored += [(arm.label, of_runs(arm, untouched)) for arm in originals]
        below = list(dict.fromkeys(label for label, score in scored if score and score.mean < UNBIASED))
        if below:
            more = f" and {len(below) - MOST_NAMED} more" if len(below) > MOST_NAMED else ""
            which = ", ".join(below[:MOST_NAMED]) + more
            yield (
                f"Mean {name} below 50, where a larger Delta is more anti-stereotype, not more of the stereotype: "
                f"{'all rows' if len(below) == len({label for label, _ in scored}) else which}."
            )


def _items_note(arms: Sequence[Arm]) -> str:
    blocks = [
        block
        for arm in arms
        for run in arm.runs
        for block in (run.last_measured.global_.crows_pairs, run.last_measured.global_.stereoset)
        if block
    ]
    if blocks and all(block.get("items") == "report" for block in blocks):
        return "Scores are of the report items, which never weigh clients."
    return "Some scores are of all items, probe items that may weigh clients among them." if blocks else ""
