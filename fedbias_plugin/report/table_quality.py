"""Tables of every arm: quality beside bias, time and memory, differences on the items, and all warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from fedbias_plugin.report.arm_choice import SCENARIO, WEIGHTING, difference_note, paper_arms, pick
from fedbias_plugin.report.measures import (
    CROWS,
    CROWS_CHANGE,
    HELDOUT_LOSS,
    ICAT,
    LENGTH_ONLY,
    LMS,
    LOSS_CHANGE,
    MASS,
    PEAK_MEMORY,
    PERPLEXITY,
    ROUGE_L,
    SECONDS,
    SS,
    SS_CHANGE,
    WEIGHT_ON_POISONED,
    Measure,
    is_incoherent,
    of_runs,
)
from fedbias_plugin.report.paired import TITLES as BENCHMARK_TITLES
from fedbias_plugin.report.paired import ItemDifference, item_differences
from fedbias_plugin.report.paper import Paper
from fedbias_plugin.report.study import Arm, SeedKey, Study, seed_text
from fedbias_plugin.report.table_arms import UNSOUND_NOTE, seeds_note
from fedbias_plugin.report.table_model import Cell, Column, Row, Table, p_cell, spread_cell
from fedbias_plugin.report.table_studies import MIXED
from fedbias_plugin.tracking.repeated import repeated_warnings, round_spans, warning_kind

QUALITY = (
    *(CROWS, LENGTH_ONLY, CROWS_CHANGE, SS, SS_CHANGE, LMS, ICAT, HELDOUT_LOSS, LOSS_CHANGE, PERPLEXITY, ROUGE_L),
    *(WEIGHT_ON_POISONED, MASS),
)
SIGNED = (CROWS_CHANGE, SS_CHANGE, LOSS_CHANGE)


def quality(study: Study, paper: Paper | None) -> Table:
    """Bias, language and task of every arm; measures that no run has are left out."""
    caption = (
        "Scores of the last measured round: 50 prefers neither sentence, and SS counts only beside a high LMS. Length "
        "alone is the CrowS score of 'fewer tokens wins', where a model that knows nothing stands. Held-out loss is on "
        "clean rows that no client holds: a model that lost its task is no success. Weight on poisoned clients and "
        "mass are means over the rounds."
    )
    table = Table("quality", "Bias beside quality, every arm", caption, ("arm",), (), (), (seeds_note(study.arms),))
    return _of_arms(table, study.arms, QUALITY)


def cost(study: Study, paper: Paper | None) -> Table | None:
    """Seconds of each phase of a whole run and peak memory; None where no run says."""
    caption = (
        "Wall-clock seconds of a whole run by phase, and the most memory the process or its GPU held. Runs that shared "
        "a machine took longer than they would alone."
    )
    table = Table("cost", "Time and memory", caption, ("arm",), (), (), (seeds_note(study.arms),))
    found = _of_arms(table, study.arms, (*SECONDS, PEAK_MEMORY))
    return found if any(cell.value for row in found.rows for cell in row.cells) else None


def _of_arms(table: Table, arms: Sequence[Arm], measures: Sequence[Measure]) -> Table:
    shown = [measure for measure in measures if any(of_runs(arm, measure) for arm in arms)]
    rows = []
    for arm in arms:
        is_unsound = is_incoherent(of_runs(arm, LMS))
        cells = [
            replace(
                spread_cell(of_runs(arm, measure), measure.digits, is_signed=measure in SIGNED),
                is_unsound=is_unsound and measure in (SS, SS_CHANGE),
            )
            for measure in shown
        ]
        rows.append(Row((arm.label,), tuple(cells)))
    is_marked = any(cell.is_unsound for row in rows for cell in row.cells)
    notes = (*table.notes, *([UNSOUND_NOTE] if is_marked else []))
    columns = tuple(Column(measure.title, measure.id) for measure in shown)
    return replace(table, columns=columns, rows=tuple(rows), notes=notes)


def items(study: Study, paper: Paper | None) -> Table | None:
    """Paired differences on the benchmark items, seed by seed; None where no run left its item scores."""
    from fedbias_plugin.evaluation.statistics import holm

    notes: list[str] = []
    found = [
        (labels, seed, differences)
        for labels, first, second in _item_pairs(study, notes)
        for seed in sorted(first.by_seed.keys() & second.by_seed.keys())
        if (differences := _differences(first, second, seed))
    ]
    if not found:
        return None
    adjusted = iter(holm([one.p_value for _, _, differences in found for one in differences]))
    rows = []
    for labels, seed, differences in found:
        cells = {one.benchmark: (_item_cell(one), p_cell(next(adjusted))) for one in differences}
        empty = (Cell(), p_cell(None))
        row = tuple(cell for benchmark in BENCHMARK_TITLES for cell in cells.get(benchmark, empty))
        rows.append(Row((labels[0], labels[1], seed_text(seed)), row, f"{labels[0]} {labels[1]}"))
    columns = [
        column
        for benchmark, title in BENCHMARK_TITLES.items()
        for column in (
            Column(title, f"{benchmark}_difference", "difference"),
            Column(f"p {title} (Holm)", f"{benchmark}_p_holm", "difference"),
        )
    ]
    return Table(
        "items",
        "Differences on the same items",
        "Score of the arm minus score of its reference on the same report items of the same seed, with a 95% interval: "
        "the bootstrap's over pairs, Student's t over target terms (none below 5). Below 0: fewer stereotypes "
        "preferred, which is less bias only above 50.",
        ("arm", "reference", "seed"),
        tuple(columns),
        tuple(rows),
        (
            "p: McNemar's test (CrowS-Pairs) and paired t-test over target terms (StereoSet), corrected by Holm "
            "within the table. It is over items of these trained models, not over seeds.",
            *notes,
        ),
    )


def _item_pairs(study: Study, notes: list[str]) -> Iterator[tuple[tuple[str, str], Arm, Arm]]:
    """BAMA against the host's aggregation, and mixed against segregated rows: labels, reference, arm."""
    arms = paper_arms(study)
    for arm in arms:
        wanted = {"model": arm.model, "fed_alg": arm.fed_alg, "aggregation": "plain"}
        partner = {mixed: segregated for segregated, mixed in MIXED}.get(arm.scenario)
        reference, varied = None, WEIGHTING if arm.aggregation == "bama" else SCENARIO
        if arm.aggregation == "bama":
            reference = pick(arms, notes, varied, beside=arm, scenario=arm.scenario, **wanted)
        elif arm.aggregation == "plain" and partner:
            reference = pick(arms, notes, varied, beside=arm, scenario=partner, **wanted)
        if reference:
            note = difference_note(reference, arm, varied)
            if note:
                notes.append(note)
            else:
                yield (arm.label, reference.label), reference, arm


def _differences(first: Arm, second: Arm, seed: SeedKey) -> list[ItemDifference]:
    one, other = first.by_seed[seed], second.by_seed[seed]
    return item_differences(one.folder, one.last_measured.round, other.folder, other.last_measured.round)


def _item_cell(one: ItemDifference) -> Cell:
    return Cell(one.difference, ci95=one.ci95, digits=1, is_signed=True)


@dataclass
class _Said:
    """A kind of warning: as said last, arm -> seeds, and rounds."""

    text: str
    where: dict[str, list[str]] = field(default_factory=dict)
    rounds: set[int] = field(default_factory=set)


def warnings(study: Study, paper: Paper | None) -> Table | None:
    """Every kind of warning of every run once, with the arms, seeds and rounds it was said in; None without any."""
    found: dict[str, _Said] = {}
    for arm in study.arms:
        for run in arm.runs:
            for warning in repeated_warnings(run.rounds):
                said = found.setdefault(warning_kind(warning.text), _Said(warning.text))
                said.where.setdefault(arm.label, []).append(seed_text(run.seed_key) if run.seed_key else run.name)
                said.rounds.update(warning.rounds)
    if not found:
        return None
    rows = []
    for said in found.values():
        where = "; ".join(f"{arm} ({', '.join(seeds)})" for arm, seeds in said.where.items())
        runs = sum(map(len, said.where.values()))
        texts = (str(runs), where, round_spans(sorted(said.rounds)))
        rows.append(Row((said.text,), tuple(Cell(text=text) for text in texts)))
    columns = (Column("runs", "runs"), Column("arms (seeds)", "arms"), Column("rounds", "rounds"))
    caption = "Every kind of warning once, in the words of the first run that said it; numbers in it differ by run."
    return Table("warnings", "Warnings of the runs", caption, ("warning",), columns, tuple(rows))
