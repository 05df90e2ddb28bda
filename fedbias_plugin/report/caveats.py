"""What a reader must know before the first number: runs that are missing, data of an invented world, tests left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.report.study import Study, StudyRun

SWEEP_FILE = "sweep.json"


def caveats(study: Study, folders: Sequence[str | Path]) -> list[str]:
    """Sentences for the top of the report; ``folders`` are those it was asked for."""
    return [
        *_missing_runs(study, folders),
        *_invented_data(study.runs),
        *_shared_sentences(study.runs),
        *_no_item_scores(study.runs),
    ]


def _missing_runs(study: Study, folders: Sequence[str | Path]) -> Iterator[str]:
    """How much of each sweep is in the report, where something is missing."""
    for folder in map(Path, folders):
        present = {run.folder.name for run in study.runs if run.folder.parent == folder.resolve() / "runs"}
        experiments = _experiments(folder)
        planned = {name for names in experiments.values() for name in names}
        if planned - present:
            parts = [f"{name}: {len(present & names)} of {len(names)}" for name, names in experiments.items()]
            yield printable(
                f"{len(planned & present)} of the {len(planned)} runs that {folder.name} plans are in this report "
                f"({', '.join(parts)}); the others have not finished, or are named under Warnings."
            )


def _experiments(folder: Path) -> dict[str, set[str]]:
    """Experiment -> names of its runs, as ``sweep.json`` lists them; empty where there is none that can be read."""
    try:
        stored = json.loads((folder / SWEEP_FILE).read_bytes())["experiments"]
        return {str(name): set(map(str, experiment["runs"])) for name, experiment in stored.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _invented_data(runs: Sequence[StudyRun]) -> Iterator[str]:
    bundled = [run for run in runs if "bundled" in _origins(run.details)]
    if bundled:
        which = "These runs" if len(bundled) == len(runs) else f"{len(bundled)} of {len(runs)} runs"
        yield (
            f"{which} used the bundled mini data, an invented world (docs/small-world.md): their numbers say how the "
            "methods work, and nothing about real stereotypes or about the paper's models."
        )


def _origins(details: Mapping[str, Any]) -> set[Any]:
    data = details.get("data")
    parts = data.values() if isinstance(data, Mapping) else ()
    return {part.get("origin") for part in parts if isinstance(part, Mapping)}


def _shared_sentences(runs: Sequence[StudyRun]) -> Iterator[str]:
    """Where probe and report items have sentences in common."""
    for benchmark, title in (("crows_pairs", "CrowS-Pairs"), ("stereoset", "StereoSet")):
        blocks = [block for run in runs if (block := getattr(run.last_measured.global_, benchmark))]
        most = max((block.get("shared_sentences") or 0 for block in blocks), default=0)
        if most:
            yield (
                f"{title}: up to {most:.0f} sentences of the report items stand in probe items too; BAMA's weights may "
                "be fitted to them."
            )


def _no_item_scores(runs: Sequence[StudyRun]) -> Iterator[str]:
    without = sum(not (run.folder / "scores").is_dir() for run in runs)
    if without:
        yield f"No paired tests on items for {without} of {len(runs)} runs: their folder scores/ is missing."
