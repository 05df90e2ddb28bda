"""The runs of a study: their folders found, their records read, each with a name of its own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import LONGEST_NAME, UserError, first_line, printable
from fedbias_plugin.study.settings import facts, text_of
from fedbias_plugin.tracking.jsonl import METRICS_FILE, read_rounds, split_tail
from fedbias_plugin.tracking.numbers import last_measured
from fedbias_plugin.tracking.recorder import RUN_FILE
from fedbias_plugin.tracking.records import ClientRecord, RoundRecord

logger = logging.getLogger(__name__)

HOST_FILE = "args.json"
"""OpenFedLLM writes it into the folder of a run, which it names itself, with sixty characters and the time."""
RUNS_FOLDER = "runs"
SWEEP_FILE = "sweep.json"
DEEPEST = 3
"""Folders between one that is given and a run in it."""
SeedKey = tuple[int, int]
"""``seed`` and ``schedule_seed`` (-1 without one) of a run: equal ones are paired."""


def mapping(value: Any) -> Mapping[str, Any]:
    """``value``, or an empty mapping where it is none."""
    return value if isinstance(value, Mapping) else {}


def planned_experiments(folder: str | Path) -> dict[str, Mapping[str, Any]]:
    """Name -> entry of each experiment that the sweep of ``folder`` plans; empty where it is none, or damaged."""
    try:
        stored = json.loads((Path(folder) / SWEEP_FILE).read_bytes())["experiments"]
        return {str(name): {**entry, "runs": [*map(str, entry["runs"])]} for name, entry in stored.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def seed_text(key: SeedKey) -> str:
    """``3``, or ``3 (schedule 7)``."""
    seed, schedule = key
    return str(seed) if schedule < 0 else f"{seed} (schedule {schedule})"


@dataclass(frozen=True, eq=False)
class Run:
    """A run that can be read.

    Attributes:
        name: of its folder, unique in the study, safe to print.
        folder: its output folder.
        settings: every resolved argument; empty where neither round 0's record nor ``run.json`` has them.
        rounds: in order; round 0 is the untouched model.
        details: ``run.json``, empty without one.
        manifest: ``manifest.json``, likewise.
        model: as little of its model's path as tells it from the study's others.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    model: str = ""

    @property
    def aggregation(self) -> str:
        """Rule that weighted the clients, as the records say."""
        return self.rounds[-1].aggregation

    @property
    def model_path(self) -> str:
        """The whole hub name or folder of the model."""
        return text_of(self.settings, "model_name_or_path").rstrip("/") or "unknown model"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What a study file may call it by (:func:`fedbias_plugin.study.settings.facts`)."""
        return facts(self.settings, self.aggregation, self.model)

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        return _integer(self.settings, "seed")

    @property
    def seed_key(self) -> SeedKey | None:
        """What tells the runs of an arm apart; None where the seed is not known."""
        schedule = _integer(self.settings, "schedule_seed")
        return None if self.seed is None else (self.seed, -1 if schedule is None else schedule)

    @property
    def is_finished(self) -> bool:
        """Whether all rounds of ``num_rounds`` are there; without it a run counts as finished where it ended."""
        planned = self.settings.get("num_rounds")
        return not isinstance(planned, int) or self.rounds[-1].round >= planned

    @property
    def first(self) -> RoundRecord | None:
        """Round 0, the untouched model; None where it was not recorded."""
        return self.rounds[0] if self.rounds[0].round == 0 else None

    @cached_property
    def last_measured(self) -> RoundRecord:
        """The last round in which a metric with an ideal was measured, or the last round."""
        return last_measured(self.rounds)

    @cached_property
    def clients(self) -> dict[int, ClientRecord]:
        """Every client that took part, as in the last of its rounds."""
        return {client: row for record in self.rounds for client, row in record.clients.items()}

    def part(self, name: str) -> Mapping[str, Any]:
        """An object of ``run.json``, empty where it has none of that name."""
        return mapping(self.details.get(name))


def read_run(name: str, path: Path, warnings: list[str]) -> Run:
    """Read a run's folder; what is damaged beside its records goes to ``warnings``.

    Raises:
        UserError: it holds no ``metrics.jsonl``, or an empty or damaged one.
    """
    if not (path / METRICS_FILE).is_file():
        raise UserError(f"{path}: holds no {METRICS_FILE}; give the --output_dir of a run that got through round 0.")
    rounds = tuple(read_rounds(path))
    if not rounds:
        raise UserError(f"{path / METRICS_FILE}: is empty; the run stopped before round 0 was measured.")
    if split_tail((path / METRICS_FILE).read_bytes())[1]:
        warnings.append(f"{name}: the last line of {METRICS_FILE} was cut off and is left out.")
    details, manifest = (_json(name, path / file, warnings) for file in (RUN_FILE, "manifest.json"))
    settings = rounds[0].settings or mapping(details.get("config"))
    return Run(name, path, settings, rounds, details, manifest)


def _json(name: str, path: Path, warnings: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        warnings.append(f"{name}: {path.name} is damaged ({printable(first_line(error))}) and not used.")
        return {}
    return mapping(found)


def _integer(settings: Mapping[str, Any], name: str) -> int | None:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def named_runs(folders: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Name and folder of every run that ``fedbias compare`` was given, in order; a folder stands for the run in it.

    A run that never got through round 0 is left out with a warning, where others remain.

    Raises:
        UserError: a folder is missing, or holds several runs or none.
    """
    found: list[Path] = []
    for folder in folders:
        inside = search_runs(Path(folder))
        inside = [path for path in inside if (path / METRICS_FILE).exists()] or inside
        if len(inside) > 1:
            raise UserError(f"{folder}: holds {len(inside)} runs; name those you mean, or all: {folder}/*")
        found += inside
    kept = [path for path in found if (path / METRICS_FILE).exists()] or found
    for path in found:
        if path not in kept:
            what = f"holds no {METRICS_FILE}; it ended before round 0 was measured, and is left out"
            logger.warning("%s: %s.", path, what)
    return list(zip(unique_names(kept), kept, strict=True))


def search_runs(folder: Path) -> list[Path]:
    """The runs in ``folder`` and below, by name; those without a measured round among them.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
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


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Folder names; with the folder above where two are equal, then numbered.

    A run of OpenFedLLM is called by the folder above, which the user named; of its own name the time is enough.
    """
    names, long_names = [], []
    for path in paths:
        above, name = path.resolve().parts[-2:]
        is_theirs = (path / HOST_FILE).is_file()
        stamp = re.search(r"_(\d{14})$", name) if is_theirs else None
        names.append(above if is_theirs else name)
        long_names.append(f"{above}/{stamp.group(1) if stamp else name}")
    names = [long if names.count(name) > 1 else name for name, long in zip(names, long_names, strict=True)]
    return numbered([printable(name).replace("\n", "\\n")[:LONGEST_NAME] for name in names])


def numbered(names: Sequence[str]) -> list[str]:
    """``names``, the second of a kind with (2) behind it.

    >>> numbered(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
