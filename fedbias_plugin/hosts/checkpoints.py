"""Checkpoints of a run: one folder each, which appears whole, with the sums that tell whether it still is.

``OUTPUT/checkpoints/round_003/`` holds ``checkpoint.json``, one safetensors file per state and ``SHA256SUMS`` (as
``sha256sum --check`` reads it). It is written under another name, forced to the disk and renamed, so that a crash
leaves the folder or nothing. ``start`` holds no states: it says what was asked for, before anything was measured. The
newest two rounds are kept: where the last one is damaged, the one before it serves.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedbias_plugin import __version__
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import disk_errors_named, sync_folder, write_json_atomic, write_text_atomic
from fedbias_plugin.state import State
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE
from fedbias_plugin.training.state_files import write_state_file

logger = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINTS, START = "checkpoints", "start"
RECORD, SUMS, LOCK = "checkpoint.json", "SHA256SUMS", ".lock"
KEPT = 2
FREE_TO_CHANGE = frozenset(
    {"output_dir", "resume_from", "data_dir", "local_states", "checkpoint_every", "save_model_freq", "wandb_mode"}
)
"""Flags that a resumed run may change: they move no number. What ``data_dir`` holds is compared by hash."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        round: the last finished round; None before the untouched model was measured.
        arguments: every flag of the run, JSON-ready.
        details: what else the run must know, JSON-ready.
        states: name of a file -> state, on the CPU.
    """

    round: int | None
    arguments: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    states: Mapping[str, State] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / CHECKPOINTS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process out of the run while the block lasts; the system lets go when this process dies.

        Raises:
            UserError: another process is in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK, "w") as stream:
            try:
                _lock(stream.fileno())
            except OSError:
                raise UserError(f"{self.folder.parent} is being written by another process; wait for it.") from None
            yield

    def write(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` and delete what is older than the one before it.

        Raises:
            UserError: it cannot be written (a full disk, a folder that is read-only); earlier ones are whole then.
        """
        target = self.folder / _name(checkpoint.round)
        partial = target.with_name(target.name + ".partial")
        try:
            _clear(partial)
            _write_files(checkpoint, partial)
            _clear(target)
            os.replace(partial, target)
            sync_folder(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(f"The checkpoint {target} cannot be written ({error}); make room and resume.") from error
        for old in self._rounds()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; each damaged one costs a warning. None where there is none at all.

        Raises:
            UserError: there are checkpoints, and every one is damaged or of another version.
        """
        folders = [*self._rounds(), *([self.folder / START] if (self.folder / START).is_dir() else [])]
        for folder in folders:
            try:
                return _read(folder)
            except _Damaged as error:
                logger.warning("The checkpoint %s is damaged (%s); the one before it is used.", folder, error)
        if folders:
            raise UserError(f"No checkpoint in {self.folder} is whole: start the run again in a new folder.")
        return None

    def delete(self) -> None:
        """Remove all of them, when the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rounds(self) -> list[Path]:
        """Folders of rounds, the newest first; no partial ones."""
        found = {}
        for path in self.folder.glob("round_*"):
            match = re.fullmatch(r"round_(\d+)", path.name)
            if match:
                found[int(match[1])] = path
        return [found[number] for number in sorted(found, reverse=True)]


def find_checkpoint(output: Path, flag: str) -> Checkpoint | None:
    """The newest whole checkpoint of the run in ``output``, which ``flag`` named; None when the run is finished.

    Raises:
        UserError: there is none, or every one is damaged.
    """
    folder = CheckpointFolder(output)
    with disk_errors_named(output):
        if (output / SUMMARY_FILE).is_file():
            folder.delete()  # a process may have died between its last two steps
            return None
        checkpoint = folder.newest()
    if checkpoint is None:
        raise UserError(f"{flag} {output}: there is no checkpoint in that folder; give the folder of a run's results.")
    return checkpoint


def changed_arguments(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """``--name new (the run has old)`` for every flag ``given`` that differs from the ``stored`` one and must not."""
    return [
        f"--{name} {value} (the run has {stored.get(name)})"
        for name, value in given.items()
        if name not in FREE_TO_CHANGE and stored.get(name) != value
    ]


def _lock(descriptor: int) -> None:
    """Raises OSError where another process holds it; systems without such locks (Windows) let everybody in."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _name(round_number: int | None) -> str:
    return START if round_number is None else f"round_{round_number:03d}"


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir(parents=True)
    names = [f"{name}.safetensors" for name in checkpoint.states]
    for name, state in zip(names, checkpoint.states.values(), strict=True):
        write_state_file(state, folder / name)
    record = {
        "format": FORMAT,
        "plugin": __version__,
        "round": checkpoint.round,
        "arguments": checkpoint.arguments,
        "details": checkpoint.details,
    }
    write_json_atomic(folder / RECORD, record)
    write_text_atomic(folder / SUMS, "".join(f"{_sha256(folder / name)}  {name}\n" for name in [RECORD, *names]))


class _Damaged(Exception):
    """A file of a checkpoint is missing or changed."""


def _read(folder: Path) -> Checkpoint:
    """Raises _Damaged, or UserError for another version."""
    try:
        lines = (folder / SUMS).read_text(encoding="ascii").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if RECORD not in sums:
            raise _Damaged(f"{SUMS} does not name {RECORD}")
        for name, digest in sums.items():
            if Path(name).name != name or _sha256(folder / name) != digest:
                raise _Damaged(f"{name} does not have the sum in {SUMS}")
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        states = {name.removesuffix(".safetensors"): load_file(folder / name) for name in sums if name != RECORD}
    except (OSError, ValueError, SafetensorError) as error:
        raise _Damaged(str(error)) from error
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder} was written by fedbias_plugin {record['plugin']} (format {record['format']}); this is "
            f"{__version__}, which reads format {FORMAT}. Resume with that version."
        )
    return Checkpoint(record["round"], record["arguments"], record["details"], states)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
