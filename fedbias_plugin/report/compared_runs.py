"""The runs that ``fedbias compare`` reads, and which of their items it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.report.run_folders import find_runs
from fedbias_plugin.tracking.jsonl import METRICS_FILE, read_rounds
from fedbias_plugin.tracking.records import RoundRecord


@dataclass(frozen=True)
class Run:
    """A run as ``fedbias compare`` reads it: its short name, its folder and its rounds, in order."""

    name: str
    folder: Path
    rounds: tuple[RoundRecord, ...]


def load_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the runs of ``folders``, named as :func:`fedbias_plugin.report.run_folders.find_runs` names them.

    Raises:
        UserError: a folder is missing, holds no ``metrics.jsonl``, or an empty or damaged one.
    """
    return [Run(name, path, _rounds(path)) for name, path in find_runs(folders)]


def common_view(runs: Sequence[Run], benchmark: str) -> str:
    """The items that every run was measured on: report items if all have them, else all items, else the headline."""
    blocks = [block for run in runs for record in run.rounds if (block := block_of(record, benchmark, "headline"))]
    for view in ("report", "full"):
        if all(_view(block, view) for block in blocks):
            return view
    return "headline"


def block_of(record: RoundRecord, benchmark: str, view: str) -> Mapping[str, Any] | None:
    """A round's result of ``benchmark`` on the items of ``view``: ``report``, ``full`` or ``headline``."""
    return _view(getattr(record.global_, benchmark), view)


def last_measured(run: Run) -> RoundRecord:
    """The last round with a bias score, or the last round."""
    measured = [record for record in run.rounds if record.global_.crows_pairs or record.global_.stereoset]
    return (measured or run.rounds)[-1]


def heldout(record: RoundRecord) -> float | None:
    """The round's held-out loss, nats per token."""
    return (record.global_.heldout_loss or {}).get("loss")


def _rounds(folder: Path) -> tuple[RoundRecord, ...]:
    if not (folder / METRICS_FILE).exists():
        raise UserError(f"{folder}: holds no {METRICS_FILE}; give the --output_dir of a run that got through round 0.")
    rounds = read_rounds(folder)
    if not rounds:
        raise UserError(f"{folder / METRICS_FILE}: is empty; the run stopped before round 0 was measured.")
    return tuple(rounds)


def _view(block: Mapping[str, Any] | None, view: str) -> Mapping[str, Any] | None:
    """The part of a global result that is of ``view`` (``report``, ``full``); ``headline`` is the result itself."""
    if not block or view == "headline" or block.get("items") == view:
        return block or None
    part = block.get(view)
    return part if isinstance(part, Mapping) else None
