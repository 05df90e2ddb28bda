"""Tables 1, 2 and 3 in the paper's shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fedbias_plugin.report.arm_choice import (
    ALGORITHM,
    CENTRALISED,
    SCENARIO,
    WEIGHTING,
    difference_note,
    loading,
    models,
    original_models,
    paper_arms,
    pick,
)
from fedbias_plugin.report.paper import ALGORITHMS, ORIGINAL, Paper
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.report.table_arms import (
    DELTAS,
    Entry,
    arm_table,
    delta_cells,
    delta_columns,
    judged,
    standard_notes,
)
from fedbias_plugin.report.table_model import Cell, Row, Table, mark_best
from fedbias_plugin.tracking.formatting import percent

TITLES = {
    "fedavg": "FedAvg", "fedadam": "FedAdam", "fedprox": "FedProx", "fedyogi": "FedYogi", "fedadagrad": "FedAdagrad",
    "fedavgm": "FedAvgM", "scaffold": "SCAFFOLD",
}  # fmt: skip
SCENARIOS = ("3B", "3C", "1B2C", "2B1C")
TABLE2_SCENARIOS = ("3B", "3C", "mix-1B2C", "mix-2B1C")
BAMA_ROWS = (
    ("plain", "", "w/o BAMA"),
    ("bama", "normalized", "w/ BAMA (normalized)"),
    ("bama", "paper", "w/ BAMA (paper)"),
)
ORIGINAL_LABEL = "original model"
_EMPTY = [Cell(), Cell()]
DELTA_CAPTION = "Delta = |score − 50| of the last round, percentage points; 0 prefers neither sentence."

BAMA_CAPTION = "Difference: with BAMA minus without, the same algorithm and seeds; below 0: nearer to 50 with BAMA."


def table1(study: Study, paper: Paper | None) -> Table | None:
    """Original model, FedAvg, FedAdam and FedProx by scenario; host aggregation, three of three clients."""
    arms = [arm for arm in paper_arms(study) if arm.aggregation == "plain" and arm.fed_alg in ALGORITHMS]
    arms = [arm for arm in arms if arm.scenario in SCENARIOS]
    if len({arm.scenario for arm in arms}) < 2:
        return None
    notes: list[str] = []
    rows = [row for model in models(arms) for row in _table1_rows(arms, model, paper, notes)]
    never = {index: _is_original(row) for index, row in enumerate(rows)}
    marked = mark_best(rows, range(2 * len(SCENARIOS)), never)
    originals = [arm for model in models(arms) for arm in original_models(arms, model).values()]
    return Table(
        "table1",
        "Table 1: bias by algorithm and scenario",
        f"{DELTA_CAPTION} Without BAMA, all three clients take part. Beside every SS stands its LMS.",
        ("model", "algorithm"),
        tuple(column for scenario in SCENARIOS for column in delta_columns(scenario)),
        tuple(marked),
        (*notes, *standard_notes(marked, arms, False, originals), *_order_notes(marked, paper, "table1")),
    )


def _table1_rows(arms: Sequence[Arm], model: str, paper: Paper | None, notes: list[str]) -> Iterator[Row]:
    """The original model, then a row an algorithm."""
    originals = original_models(arms, model)
    before = {key: delta_cells(arm, is_original=True) for key, arm in originals.items()}
    stated = [paper.cell("table1", model, ORIGINAL, measure.id) if paper else None for measure in DELTAS]
    for key, original in originals.items():
        shown = [replace(cell, paper=number) for cell, number in zip(before[key], stated, strict=True)]
        yield Row((model, original.label), tuple(shown * len(SCENARIOS)), model)
    varied = ALGORITHM | SCENARIO
    head = pick(arms, [], varied, model=model)
    for algorithm in ALGORITHMS:
        found: list[Cell] = []
        for scenario in SCENARIOS:
            arm = pick(arms, notes, varied, beside=head, model=model, fed_alg=algorithm, scenario=scenario)
            note = difference_note(head, arm, varied) if head and arm else None
            notes += [note] if note else []
            numbers = [paper.cell("table1", model, (algorithm, scenario), m.id) if paper else None for m in DELTAS]
            cells = delta_cells(arm) if arm else _EMPTY
            starts = before.get(loading(arm), _EMPTY) if arm else _EMPTY
            for cell, start, number, first in zip(cells, starts, numbers, stated, strict=True):
                found.append(replace(judged(cell, start, number, first), is_apart=note is not None))
        if any(cell.value is not None for cell in found):
            yield Row((model, TITLES[algorithm]), tuple(found), model)


def _is_original(row: Row) -> bool:
    return row.labels[1].startswith(ORIGINAL_LABEL)


def _order_notes(rows: Sequence[Row], paper: Paper | None, table: str) -> Iterator[str]:
    """Whether the algorithms stand in the paper's order, for every model and column that both know."""
    for group in dict.fromkeys(row.group for row in rows):
        known = [row for row in rows if row.group == group and not _is_original(row)]
        for column in range(2 * len(SCENARIOS)):
            cells = [(row.labels[1], row.cells[column]) for row in known]
            cells = [(name, cell) for name, cell in cells if cell.paper is not None and cell.value is not None]
            if len(cells) < 2 or any(cell.is_unsound or cell.is_apart for _, cell in cells):
                continue
            ours = [name for name, _ in sorted(cells, key=lambda pair: pair[1].value or 0.0)]
            theirs = [name for name, _ in sorted(cells, key=lambda pair: pair[1].paper or 0.0)]
            where = f"{group}, {SCENARIOS[column // 2]}, {DELTAS[column % 2].title}"
            stated = f"differs from the paper's ({' < '.join(theirs)})"
            verdict = "agrees with the paper's" if ours == theirs else stated
            yield f"{where}: the order {' < '.join(ours)} {verdict}."


def table1_scenarios(study: Study, paper: Paper | None) -> Table | None:
    """The tests behind Table 1: every scenario against clean clients only (3C)."""
    arms = [arm for arm in paper_arms(study) if arm.aggregation == "plain" and arm.fed_alg in ALGORITHMS]
    entries, notes = [], list[str]()
    for model in models(arms):
        for algorithm in ALGORITHMS:
            own = [arm for arm in arms if arm.fed_alg == algorithm and arm.scenario in SCENARIOS]
            clean = pick(own, notes, SCENARIO, model=model, scenario="3C")
            group = f"{model} {algorithm}"
            for scenario in ("3C", "1B2C", "2B1C", "3B") if clean else ():
                arm = pick(own, notes, SCENARIO, beside=clean, model=model, scenario=scenario)
                if arm:
                    reference = clean if arm is not clean else None
                    labels = (model, TITLES[algorithm], scenario)
                    entries.append(Entry(labels, arm, group, reference, varied=SCENARIO))
    if not any(entry.reference for entry in entries):
        return None
    table = Table(
        "table1_scenarios",
        "Biased clients against clean ones",
        f"{DELTA_CAPTION} Difference: the scenario minus 3C, the same algorithm and seeds.",
        *(("model", "algorithm", "scenario"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, None)


def table2(study: Study, paper: Paper | None) -> Table | None:
    """Centralised full fine-tuning and LoRA beside FedAdam by scenario; None without a centralised run."""
    central = [arm for arm in study.arms if arm.is_centralised and not arm.attack]
    arms = [arm for arm in paper_arms(study) if arm.fed_alg == "fedadam" and arm.aggregation == "plain"]
    if not central:
        return None
    notes: list[str] = []
    entries = [
        entry for model in models([*central, *arms]) for entry in _table2_entries(study, central, arms, model, notes)
    ]
    table = Table(
        "table2",
        "Table 2: centralised and federated fine-tuning",
        f"{DELTA_CAPTION} Difference: the row minus FedAdam with clean clients only (3C), the same seeds.",
        *(("model", "training", "biased rows"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, paper)


def _table2_entries(
    study: Study, central: Sequence[Arm], arms: Sequence[Arm], model: str, notes: list[str]
) -> Iterator[Entry]:
    own = [arm for arm in (*central, *arms) if arm.model == model]
    for original in original_models(study.arms, model).values():
        yield Entry((model, original.label, ""), original, model, is_original=True)
    clean = pick(own, notes, CENTRALISED, fed_alg="fedadam", scenario="3C")
    for trained, key in ((False, "centralised_full"), (True, "centralised_lora")):
        for arm in central:
            if arm.model == model and bool(arm.settings.get("use_peft")) == trained:
                name = f"centralised {'LoRA' if trained else 'full'}"
                # The paper has one cell a kind of training; beside it stands the run on biased rows alone.
                path = (key,) if _biased_share(arm) in (None, 1.0) else ()
                labels = (model, name, _biased_rows(arm))
                yield Entry(labels, arm, model, clean, path, ("fedadam", "3C"), varied=CENTRALISED)
    for scenario in TABLE2_SCENARIOS:
        found = pick(arms, notes, SCENARIO, beside=clean, model=model, scenario=scenario)
        if found:
            reference = clean if found is not clean else None
            labels = (model, "FedAdam", scenario)
            yield Entry(labels, found, model, reference, ("fedadam", scenario), ("fedadam", "3C"), varied=SCENARIO)


def _biased_rows(arm: Arm) -> str:
    """The share of biased rows that a centralised run was given; its scenario where it names none."""
    share = _biased_share(arm)
    return arm.scenario if share is None else f"{percent(share)} biased"


def _biased_share(arm: Arm) -> float | None:
    """The one client's share, 0 to 1."""
    try:
        return float(arm.settings["biased_shares"])
    except (KeyError, TypeError, ValueError):
        return None


def table3(study: Study, paper: Paper | None) -> Table | None:
    """Without BAMA and with both of its weightings, three algorithms, on 1B2C."""
    found = _bama_entries(study, ALGORITHMS, paper_path=True)
    if found is None:
        return None
    entries, notes = found
    table = Table(
        "table3",
        "Table 3: with and without BAMA, one of three clients biased (1B2C)",
        f"{DELTA_CAPTION} {BAMA_CAPTION}",
        *(("model", "algorithm", "aggregation"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, paper)


def algorithms(study: Study, paper: Paper | None) -> Table | None:
    """As Table 3 for all seven algorithms; None unless one is there that Table 3 does not have."""
    found = _bama_entries(study, tuple(TITLES), paper_path=False)
    if found is None or all(entry.arm.fed_alg in ALGORITHMS for entry in found[0]):
        return None
    entries, notes = found
    table = Table(
        "algorithms",
        "BAMA on every algorithm, 1B2C",
        f"{DELTA_CAPTION} {BAMA_CAPTION}",
        *(("model", "algorithm", "aggregation"), (), (), tuple(notes)),
    )
    return arm_table(table, entries, None)


def _bama_entries(study: Study, names: Sequence[str], *, paper_path: bool) -> tuple[list[Entry], list[str]] | None:
    """Rows without and with BAMA on 1B2C; None when no arm has BAMA or none goes without."""
    arms = [arm for arm in paper_arms(study) if arm.scenario == "1B2C"]
    entries, notes = [], list[str]()
    for model in models(arms):
        for algorithm in names:
            own = [arm for arm in arms if arm.fed_alg == algorithm and arm.aggregation in ("plain", "bama")]
            without = pick(own, notes, WEIGHTING, model=model, aggregation="plain")
            for aggregation, weighting, title in BAMA_ROWS:
                wanted = {"aggregation": aggregation, "weighting": weighting}
                arm = pick(own, notes, WEIGHTING, beside=without, model=model, **wanted)
                if arm is None:
                    continue
                path, before = _table3_paths(algorithm, aggregation, weighting) if paper_path else ((), ())
                reference = without if arm is not without else None
                labels = (model, TITLES[algorithm], title)
                group = f"{model} {algorithm}"
                entries.append(Entry(labels, arm, group, reference, path, before, varied=WEIGHTING))
    return (entries, notes) if {entry.arm.aggregation for entry in entries} == {"plain", "bama"} else None


def _table3_paths(algorithm: str, aggregation: str, weighting: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paper's weights are its equations to the letter: the normalized ones are not in it."""
    without = (algorithm, "without_bama")
    if aggregation == "plain":
        return without, without
    return ((algorithm, "with_bama"), without) if weighting == "paper" else ((), ())
