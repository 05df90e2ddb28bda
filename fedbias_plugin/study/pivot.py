"""Tables of means over seeds by the facts of arms, as a study file lays them out, with the paper's cells beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.study.comparable import conflicts, named
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.published import Published
from fedbias_plugin.study.runs import Run
from fedbias_plugin.study.settings import PRODUCT, differences, listed, unusual, value_text
from fedbias_plugin.study.study_file import PivotTable, StudyFile, fits
from fedbias_plugin.study.table import Cell, Column, Row, Table
from fedbias_plugin.study.tables import below_note, column_of, measure_cell, seeds_note, unsound_note

ORIGINAL = "original model"
FACT_SETTINGS: Mapping[str, Sequence[str]] = {
    "model": ["model_name_or_path"],
    "training": ["fed_alg"],
    "clients": ["num_clients", "sample_clients"],
    "weighting": ["bama_weighting"],
    "strength": PRODUCT,
    "scenario": ["scenario", "biased_shares"],
}
"""Fact -> the settings that differ where it does, if they are not called so."""
Key = tuple[Any, ...]
Places = Mapping[tuple[Key, Key], Arm]
"""(Values of the facts of a row, of those of a column) -> arm."""


def pivot_tables(study: Study, file: StudyFile) -> Iterator[Table]:
    """Every table of the file that the study has arms for."""
    for spec in file.tables:
        arms = [arm for arm in study.arms if arm.facts and fits(arm.facts, spec.where)]
        counts = {name: len({str(arm.facts.get(name)) for arm in arms}) for name in spec.needs}
        is_measured = any(name in study.finals.columns for name in spec.measures)
        if arms and is_measured and all(counts[name] >= needed for name, needed in spec.needs.items()):
            yield _pivot(study, file, spec, arms)


def _pivot(study: Study, file: StudyFile, spec: PivotTable, arms: Sequence[Arm]) -> Table:
    notes: list[str] = []
    places = _places(spec, arms, notes)
    apart = _apart(spec, places, notes)
    row_keys, column_keys = (
        sorted({place[side] for place in places}, key=lambda key, of=names: file.sort_key(of, key))  # type: ignore[misc]
        for side, names in enumerate(spec.axes)
    )
    measures = [name for name in spec.measures if name in study.finals.columns]
    where = [(column, measure) for column in column_keys for measure in measures]
    heads = [
        dataclasses.replace(column_of(measure), group=" ".join(_shown(value, file) for value in column))
        for column, measure in where
    ]
    rows: list[Row] = []
    for group, own in groupby(row_keys, key=lambda key: str(key[0])):
        keys, originals = list(own), []
        for arm in _originals(arms, group) if spec.original else ():
            untouched = Study((arm,))
            originals = [_cell(untouched, spec, arm, one, file.published, is_original=True) for _, one in where]
            rows.append(Row((group, arm.label, *[""] * (len(spec.rows) - 2)), tuple(originals), group))
        cells = [
            [_cell(study, spec, places.get((key, column)), measure, file.published) for column, measure in where]
            for key in keys
        ]
        counts = [[one.endswith("/delta") and (key, column) not in apart for column, one in where] for key in keys]
        for key, line in zip(keys, _with_best(cells, counts), strict=True):
            plain = places.get((_without_bama(spec, key), ()))
            references = originals or [_cell(study, spec, plain, one, file.published) for _, one in where]
            labels = tuple(_shown(value, file) for value in key)
            rows.append(Row(labels, tuple(map(_judged, line, references)), group))
    every = [cell for row in rows for cell in row.cells]
    deltas = [name.removesuffix("/delta") for name in measures if name.endswith("/delta")]
    notes += [*seeds_note(list(places.values())), *below_note(study, list(places.values()), deltas)]
    notes += unsound_note(every)
    if any(cell.paper is not None for cell in every):
        told = (f"Of the paper: {text}" for text in file.published.inconsistencies.get(spec.id, ()))
        notes += [*_order_notes(rows, heads), *told, *_other_settings(file.published, places.values())]
    caption = spec.caption or "Means over seeds."
    return Table(spec.id, spec.title, caption, spec.rows, tuple(heads), tuple(rows), tuple(dict.fromkeys(notes)))


def _with_best(rows: list[list[Cell]], counts: Sequence[Sequence[bool]]) -> list[list[Cell]]:
    """The lowest of each column in bold, where two or more of those that count have a value that is sound."""
    for column in range(len(rows[0])):
        compared = [row for row, own in zip(rows, counts, strict=True) if own[column] and not row[column].is_unsound]
        values = [value for row in compared if (value := row[column].value) is not None]
        for row in compared if len(values) > 1 else ():
            row[column] = dataclasses.replace(row[column], is_best=row[column].value == min(values))
    return rows


def _places(spec: PivotTable, arms: Sequence[Arm], notes: list[str]) -> dict[tuple[Key, Key], Arm]:
    """Of several arms that fit a place the one with most default settings, then most seeds."""
    found: dict[Any, list[Arm]] = {}
    for arm in arms:
        found.setdefault(tuple(tuple(arm.facts.get(name) for name in names) for names in spec.axes), []).append(arm)
    for own in found.values():
        own.sort(key=lambda arm: (unusual(arm.runs[0]), -len(arm.runs)))
        if len(own) > 1:
            others = ", ".join(arm.label for arm in own[1:])
            notes.append(f"Of {len(own)} arms that fit one place, {own[0].label} is shown; not shown: {others}.")
    return {place: own[0] for place, own in found.items()}


def _apart(spec: PivotTable, places: Places, notes: list[str]) -> set[tuple[Key, Key]]:
    """Places whose arms differ from most of their model in more than the table shows; ``notes`` say in what."""
    facts = (*spec.rows, spec.columns, *spec.where)
    varied = {*spec.may_differ, *(setting for fact in facts for setting in FACT_SETTINGS.get(fact, (fact,)))}
    apart = set()
    for model in dict.fromkeys(arm.model for arm in places.values()):
        own = {place: arm for place, arm in places.items() if arm.model == model}
        found = {
            one: {other: differences(own[one].runs[0], own[other].runs[0], varied) for other in own} for one in own
        }
        head = min(own, key=lambda place: sum(map(bool, found[place].values())))
        for place, arm in own.items():
            first, other = own[head].runs[0], arm.runs[0]
            values = [f"{name} ({first.facts.get(name)} and {other.facts.get(name)})" for name in found[head][place]]
            if clash := [*values, *(conflicts(first, other, None) if not values else ())]:
                apart.add(place)
                notes.append(printable(f"Not comparable: {own[head].label} and {arm.label} differ in {named(clash)}."))
    return apart


def _originals(arms: Sequence[Arm], model: str) -> Iterator[Arm]:
    """The untouched model, once for each way in which it was loaded; of every seed the first run's round 0."""
    loaded: dict[tuple[str, ...], dict[Any, Run]] = {}
    for run in [run for arm in arms if arm.model == model for run in arm.runs if run.first is not None]:
        how = tuple(str(run.facts.get(name) or False) for name in ("dtype", "load_in_8bit", "load_in_4bit"))
        loaded.setdefault(how, {}).setdefault(run.seed_key, dataclasses.replace(run, rounds=run.rounds[:1]))
    for (dtype, in_8_bits, in_4_bits), runs in loaded.items():
        bits = " in 8 bits" if in_8_bits == "True" else " in 4 bits" if in_4_bits == "True" else ""
        yield Arm(f"{ORIGINAL}, {dtype}{bits}" if len(loaded) > 1 else ORIGINAL, tuple(runs.values()))


def _cell(
    study: Study, spec: PivotTable, arm: Arm | None, measure: str, published: Published, *, is_original: bool = False
) -> Cell:
    """A mean over seeds, with the paper's number where it has the place; empty without an arm."""
    if arm is None:
        return Cell()
    cell = measure_cell(study, arm, measure)
    if not spec.paper or not (is_original or fits(arm.facts, spec.paper.get("where", {}))):
        return cell
    keys = spec.paper.get("names", {})
    values = [arm.facts.get(name) for name in spec.paper["path"]]
    path = ["original"] if is_original else [str(keys.get(value, value)) for value in values]
    return dataclasses.replace(cell, paper=published.cell(spec.paper["table"], arm.model, path, measure))


def _without_bama(spec: PivotTable, key: Key) -> Key:
    """The row without BAMA, to which the direction of the paper's change is taken in a table that has both."""
    plain = {"aggregation": "plain", "weighting": ""}
    row = tuple(plain.get(name, value) for name, value in zip(spec.rows, key, strict=True))
    return row if "aggregation" in spec.rows else ()


def _judged(cell: Cell, reference: Cell) -> Cell:
    """``cell`` with whether it changed from the reference in the paper's direction; None where one has no number."""
    if cell.is_unsound or reference.is_unsound:
        return cell
    pairs = [(cell.value, reference.value), (cell.paper, reference.paper)]
    moves = [now - before for now, before in pairs if now is not None and before is not None]
    return dataclasses.replace(cell, agrees=moves[0] * moves[1] > 0) if len(moves) == 2 and any(moves) else cell


def _order_notes(rows: Sequence[Row], heads: Sequence[Column]) -> Iterator[str]:
    """Whether the rows of a model stand in the paper's order, column by column."""
    for group in dict.fromkeys(row.group for row in rows):
        known = [row for row in rows if row.group == group and not row.labels[1].startswith(ORIGINAL)]
        for place, head in enumerate(heads):
            cells = [(" ".join(filter(None, row.labels[1:])), row.cells[place]) for row in known]
            both = [one for one in cells if None not in (one[1].paper, one[1].value) and not one[1].is_unsound]
            if len(both) > 1:
                ours = [name for name, _ in sorted(both, key=lambda one: one[1].value or 0.0)]
                theirs = [name for name, _ in sorted(both, key=lambda one: one[1].paper or 0.0)]
                where = ", ".join(filter(None, (group, head.group, head.title)))
                said = "is the paper's" if ours == theirs else f"is not the paper's ({' < '.join(theirs)})"
                yield f"{where}: the order {' < '.join(ours)} {said}."


def _other_settings(published: Published, arms: Iterable[Arm]) -> Iterator[str]:
    """In which of the settings that the paper states these arms are not the paper's."""
    for flag, value in published.stated.items():
        if own := [value_text(arm.facts[flag]) for arm in arms if arm.facts.get(flag, value) != value]:
            yield f"The paper's runs have --{flag} {value:g}, some of these {listed(own)}."


def _shown(value: Any, file: StudyFile) -> str:
    if value in (None, "") and value not in file.names:
        return ""
    return printable(str(file.names.get(value, f"{value:g}" if isinstance(value, float) else value)))
