"""The runs of a study as ``fedbias report`` reads them, gathered into arms: the same settings under several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import LONGEST_NAME, UserError, first_line, printable, quoted
from fedbias_plugin.report.measurements import split_by_items
from fedbias_plugin.report.run_folders import HOST_FILE
from fedbias_plugin.report.settings import RunSettings, arm_key, arm_labels, shown_models
from fedbias_plugin.tracking.jsonl import METRICS_FILE, read_rounds
from fedbias_plugin.tracking.records import RoundRecord

RUN_FILE = "run.json"
RUNS_FOLDER = "runs"
DEEPEST = 3
"""Folders between one that is given and a run in it."""
SeedKey = tuple[int, int]
"""``seed`` and ``schedule_seed`` (-1 without one) of a run: equal ones are paired."""


def seed_text(key: SeedKey) -> str:
    """``3``, or ``3 (schedule 7)``."""
    seed, schedule = key
    return str(seed) if schedule < 0 else f"{seed} (schedule {schedule})"


@dataclass(frozen=True)
class StudyRun(RunSettings):
    """A run that can be read.

    Attributes:
        name: of its folder, unique in the study, safe to print.
        folder: its output folder.
        settings: every resolved argument; empty where neither round 0's record nor ``run.json`` has them.
        rounds: in order; round 0 is the untouched model.
        is_finished: the last round that the settings ask for was recorded; True where they do not say.
        details: ``run.json``, empty without one.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    is_finished: bool
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def aggregation(self) -> str:
        """Rule that weighted the clients, as the records say."""
        return self.rounds[-1].aggregation

    @property
    def seed_key(self) -> SeedKey | None:
        """What tells the runs of an arm apart; None where the seed is not known."""
        if self.seed is None:
            return None
        return self.seed, -1 if self.schedule_seed is None else self.schedule_seed

    @property
    def first(self) -> RoundRecord | None:
        """Round 0, the untouched model; None where it was not recorded."""
        return self.rounds[0] if self.rounds[0].round == 0 else None

    @property
    def last_measured(self) -> RoundRecord:
        """The last round in which bias was measured, or the last round."""
        measured = [record for record in self.rounds if record.global_.crows_pairs or record.global_.stereoset]
        return (measured or list(self.rounds))[-1]


@dataclass(frozen=True)
class Arm(RunSettings):
    """Runs that differ in nothing but their seeds and their names.

    Attributes:
        label: short, unique in the study: ``fedavg 1B2C bama (paper)``.
        settings: of the first run.
        runs: by seed.
        model: the model's last folder, or as much of its path as tells it from the study's others.
    """

    label: str
    settings: Mapping[str, Any]
    runs: tuple[StudyRun, ...]
    model: str

    @property
    def aggregation(self) -> str:
        """Rule that weighted the clients."""
        return self.runs[0].aggregation

    @property
    def by_seed(self) -> dict[SeedKey, StudyRun]:
        """Seeds -> run, for the runs whose seed is known."""
        return {run.seed_key: run for run in self.runs if run.seed_key is not None}


@dataclass(frozen=True)
class Study:
    """Everything a report is made of.

    Attributes:
        arms: in the order in which their first runs were found.
        warnings: what was left out and why, and what does not fit together.
    """

    arms: tuple[Arm, ...]
    warnings: tuple[str, ...]

    @property
    def runs(self) -> tuple[StudyRun, ...]:
        """The runs of all arms."""
        return tuple(run for arm in self.arms for run in arm.runs)


def load_study(folders: Sequence[str | Path]) -> Study:
    """Read the runs of ``folders`` and gather them into arms.

    A folder is the output of a sweep (with ``runs/``), a run, or holds runs, at most three folders deep. Left out with
    a warning: a run that is damaged, empty or not finished, the second run of one seed and ``schedule_seed``, and runs
    measured on other items than most (:func:`fedbias_plugin.report.measurements.split_by_items`).

    Raises:
        UserError: a folder is missing or holds no run, no run is left, or the runs fall into equal halves that were
            measured on different items.
    """
    paths = list(dict.fromkeys(path.resolve() for folder in folders for path in _run_folders(Path(folder))))
    warnings: list[str] = []
    runs = list(_read_all(paths, warnings))
    if not runs:
        raise UserError(f"None of the {len(paths)} runs can be read. {' '.join(warnings)}")
    finished = [run for run in runs if run.is_finished]
    if not finished:
        states = ", ".join(f"{run.name} at round {run.rounds[-1].round}" for run in runs[:3])
        raise UserError(f"No run has finished ({states}); fedbias compare shows runs that have not.")
    warnings += [_unfinished(run) for run in runs if not run.is_finished]
    kept, found = split_by_items(finished)
    warnings += found
    arms = tuple(_arms(kept, warnings))
    return Study(arms, (*warnings, *_mixed_versions(kept)))


def _run_folders(folder: Path) -> list[Path]:
    """The runs that ``folder`` means, by name; those without a measured round among them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a sweep or the --output_dir of a run.")
    found = list(_search(folder, DEEPEST))
    if not found:
        raise UserError(
            f"{folder}: holds no run (no {METRICS_FILE} in it or below); give the folder of a sweep or the "
            "--output_dir of a run that got through round 0."
        )
    return found


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in (METRICS_FILE, RUN_FILE, HOST_FILE)):
        yield folder
        return
    inside = folder / RUNS_FOLDER if (folder / RUNS_FOLDER).is_dir() else folder
    if depth:
        for child in sorted(inside.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _search(child, depth - 1)


def _read_all(paths: Sequence[Path], warnings: list[str]) -> Iterator[StudyRun]:
    for name, path in zip(_unique_names(paths), paths, strict=True):
        try:
            run = _read(name, path, warnings)
        except UserError as error:
            warnings.append(f"{name} is left out: {error}")
        else:
            yield run


def _read(name: str, path: Path, warnings: list[str]) -> StudyRun:
    if not (path / METRICS_FILE).is_file():
        raise UserError(f"{path}: holds no {METRICS_FILE}; the run stopped before round 0 was measured.")
    rounds = tuple(read_rounds(path))
    if not rounds:
        raise UserError(f"{path / METRICS_FILE}: is empty; the run stopped before round 0 was measured.")
    if _is_torn(path / METRICS_FILE):
        warnings.append(f"{name}: the last line of {METRICS_FILE} was cut off and is left out.")
    details = _details(name, path / RUN_FILE, warnings)
    recorded = getattr(rounds[0], "settings", None)
    config = details.get("config")
    settings = recorded or (config if isinstance(config, Mapping) else {})
    if not settings:
        warnings.append(f"{name}: neither its records nor {RUN_FILE} say its settings; it stands for itself.")
    return StudyRun(name, path, settings, rounds, _is_finished(settings, rounds), details)


def _is_finished(settings: Mapping[str, Any], rounds: Sequence[RoundRecord]) -> bool:
    """Whether all rounds of ``num_rounds`` are there; without it a run counts as finished where it ended."""
    planned = settings.get("num_rounds")
    return not isinstance(planned, int) or rounds[-1].round >= planned


def _is_torn(path: Path) -> bool:
    """Whether what follows the last line end is not a whole JSON object, as ``read_rounds`` sees it."""
    tail = path.read_bytes().rpartition(b"\n")[2].strip()
    try:
        return bool(tail) and not isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        return True


def _details(name: str, path: Path, warnings: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        details = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        warnings.append(f"{name}: {RUN_FILE} is damaged ({printable(first_line(error))}) and not used.")
        return {}
    return details if isinstance(details, dict) else {}


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Folder names; with the folder above where two are equal, then numbered."""
    names = [path.name for path in paths]
    repeated = {name for name in names if names.count(name) > 1}
    names = [
        f"{path.parent.name}/{name}" if name in repeated else name for path, name in zip(paths, names, strict=True)
    ]
    names = [printable(name).replace("\n", "\\n")[:LONGEST_NAME] for name in names]
    return _numbered(names)


def _numbered(names: Iterable[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result


def _unfinished(run: StudyRun) -> str:
    planned = quoted(run.settings.get("num_rounds"))
    return f"{run.name} is left out: it has not finished, its last round is {run.rounds[-1].round} of {planned}."


def _arms(runs: Sequence[StudyRun], warnings: list[str]) -> Iterator[Arm]:
    groups: dict[str, list[StudyRun]] = {}
    for run in runs:
        groups.setdefault(arm_key(run.settings, run.aggregation) or f"run {run.name}", []).append(run)
    repeats: list[str] = []
    members = [_one_run_per_seed(group, repeats) for group in groups.values()]
    if repeats:
        warnings.append(f"Left out, settings and seed are those of another run: {'; '.join(repeats)}.")
    labels = _numbered(arm_labels([(group[0].name, group[0]) for group in members]))
    models = shown_models(group[0].model_path for group in members)
    for label, group in zip(labels, members, strict=True):
        yield Arm(label, group[0].settings, tuple(group), models[group[0].model_path])


def _one_run_per_seed(group: Sequence[StudyRun], repeats: list[str]) -> list[StudyRun]:
    by_seed: dict[SeedKey | None, StudyRun] = {}
    for run in sorted(
        group, key=lambda run: not (run.folder / "scores").is_dir()
    ):  # what can be tested on items, first
        kept = by_seed.setdefault(run.seed_key, run)
        if kept is not run:
            is_equal = run.last_measured.global_ == kept.last_measured.global_
            repeats.append(f"{run.name} (as {kept.name}{'' if is_equal else ', with other numbers'})")
    return sorted(by_seed.values(), key=lambda run: run.seed_key or (-1, -1))


def _mixed_versions(runs: Sequence[StudyRun]) -> Iterator[str]:
    """A sentence for every package that was not the same in all runs."""
    found: dict[str, dict[str, int]] = {}
    for run in runs:
        versions = run.details.get("versions")
        for package, version in (versions if isinstance(versions, Mapping) else {}).items():
            counts = found.setdefault(str(package), {})
            counts[str(version)] = counts.get(str(version), 0) + 1
    for package, counts in sorted(found.items()):
        if len(counts) > 1:
            listed = ", ".join(f"{version} in {count}" for version, count in sorted(counts.items()))
            yield f"The runs used different versions of {printable(package)}: {printable(listed)}."
