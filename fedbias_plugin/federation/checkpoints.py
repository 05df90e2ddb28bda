"""Checkpoints of a run: one folder each, which appears whole, with the sums that tell whether it still is.

``OUTPUT/checkpoints/round_003/`` holds ``checkpoint.json``, one safetensors file a state and ``SHA256SUMS`` (as
``sha256sum --check`` reads it). It is written under another name, forced to the disk and renamed, so that a crash
leaves the folder or nothing. ``start`` holds no states: it says what was asked for, before anything was measured. The
newest two rounds are kept: where the last one is damaged, the one before it serves.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedbias_plugin import __version__
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.state_store import write_state_file
from fedbias_plugin.files import disk_errors_named, sha256_of_file, whole_folder, write_json_atomic, write_text_atomic
from fedbias_plugin.known_flags import free_to_change
from fedbias_plugin.state import State
from fedbias_plugin.tracking.jsonl import METRICS_FILE, SUMMARY_FILE

logger = logging.getLogger(__name__)

FORMAT = 2
CHECKPOINTS, START = "checkpoints", "start"
ROUND, LOCK = "round_", ".lock"
RECORD, SUMS = "checkpoint.json", "SHA256SUMS"
IN_FILE, ORDER = "state in file", "order"
"""What stands in the record for a state: the name of its file, and its names in their order, which norms depend on."""
KEPT = 2
RESUMED_BY = {
    "builtin": "a run of the built-in host; to go on with it: fedbias run --resume",
    "openfedllm": "a run of a patched OpenFedLLM; to go on with it: its command, with --resume_from",
}


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on.

    Attributes:
        round: the last finished round; None before the untouched model was measured.
        arguments: every flag of the run, JSON-ready.
        details: what else the run must know: every ``state_dict()`` there is. JSON-ready, with text as keys, but for
            states (name -> tensor on the CPU), which may stand anywhere in it. Read ones are mapped from their files,
            which keep their place on the disk until this is empty.
        states: further states, by the name of their file; likewise.
        host: ``builtin`` or ``openfedllm``.
    """

    round: int | None
    arguments: Mapping[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    host: str = "builtin"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: Path) -> None:
        self.folder = output_dir / CHECKPOINTS

    @property
    def is_empty(self) -> bool:
        """Whether no checkpoint was ever finished here."""
        return not self._rounds() and not (self.folder / START).is_dir()

    def write(self, checkpoint: Checkpoint) -> None:
        """Write ``checkpoint`` and delete what is older than the one before it.

        Raises:
            UserError: it cannot be written (a full disk, a folder that is read-only); earlier ones are whole then.
        """
        name = START if checkpoint.round is None else f"{ROUND}{checkpoint.round:03d}"
        target = self.folder / name
        try:
            with whole_folder(target) as folder:
                _write_files(checkpoint, folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"The checkpoint {target} cannot be written ({error}); mend that and resume.") from error
        for old in self._rounds()[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint of a round, or ``start`` before any round; None where there is none at all.

        Every damaged one costs a warning.

        Raises:
            UserError: there are checkpoints, and every one is damaged or of another version, or one cannot be read.
        """
        rounds = self._rounds()
        folders = rounds or [folder for folder in (self.folder / START,) if folder.is_dir()]
        for folder in folders:
            try:
                return _read(folder)
            except _Damaged as error:
                before = "; the one before it is tried" if folder != folders[-1] else ""
                logger.warning("The checkpoint %s is damaged (%s)%s.", folder, error, before)
        if folders:
            raise UserError(f"No checkpoint in {self.folder} is whole: start the run again in a new folder.")
        return None

    def forget_after(self, round_number: int | None) -> None:
        """Delete the checkpoints of later rounds, which a run that goes on from ``round_number`` makes anew."""
        kept = -1 if round_number is None else round_number
        for folder in self._rounds():
            if int(folder.name.removeprefix(ROUND)) > kept:
                shutil.rmtree(folder)

    def delete(self) -> None:
        """Remove all of them, when the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _rounds(self) -> list[Path]:
        """Folders of rounds, the newest first; no partial ones."""
        found = [path for path in self.folder.glob(f"{ROUND}*") if path.name.removeprefix(ROUND).isdecimal()]
        return sorted(found, key=lambda path: int(path.name.removeprefix(ROUND)), reverse=True)


def find_checkpoint(output: Path, flag: str, host: str) -> Checkpoint | None:
    """The newest whole checkpoint of ``host``'s run in ``output``, which ``flag`` named; None when the run is finished.

    To be called under :func:`locked`: it deletes the checkpoints of a finished run, and those after the one it returns.

    Raises:
        UserError: there is none, every one is damaged, or it is of another host.
    """
    folder = CheckpointFolder(output)
    with disk_errors_named(output):
        if (output / SUMMARY_FILE).is_file():
            folder.delete()  # a process may have died between its last two steps
            return None
        checkpoint = folder.newest()
        if checkpoint is None and (output / METRICS_FILE).exists():
            raise UserError(
                f"{flag} {output}: that run kept no checkpoint (--checkpoint_every 0, or it was deleted); begin again "
                "in a new folder."
            )
        if checkpoint is None:
            here = output.resolve()
            near = [*here.parents][:2] + sorted(path for path in here.iterdir() if path.is_dir())
            meant = [path for path in near if not CheckpointFolder(path).is_empty]
            hint = f" Did you mean {', '.join(map(str, meant[:3]))}?" if meant else ""
            raise UserError(
                f"{flag} {output}: there is no checkpoint in that folder; give the one that holds the run's "
                f"metrics.jsonl.{hint}"
            )
        if checkpoint.host != host:
            raise UserError(f"{flag} {output}: {RESUMED_BY[checkpoint.host]}")
        folder.forget_after(checkpoint.round)
    return checkpoint


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keep every other process out of the run's folder while the block lasts; made where it is missing.

    The system lets go when this process dies. A file system without locks costs a warning.

    Raises:
        UserError: another process is in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / LOCK
    with open(path, "w") as stream:
        try:
            _lock(stream.fileno())
            if not path.exists() or not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                raise BlockingIOError  # the one before left meanwhile, and took this file along
        except BlockingIOError:
            raise UserError(f"{output} is being written by another process; wait for it.") from None
        except OSError as error:
            logger.warning("%s cannot be locked (%s): let no second process into it.", output, error)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def changed_arguments(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """``--name new (the run has old)`` for every flag ``given`` that differs from the ``stored`` one and must not."""
    return [
        f"--{name} {value} (the run has {stored.get(name)})"
        for name, value in given.items()
        if name not in free_to_change() and stored.get(name) != value
    ]


def _lock(descriptor: int) -> None:
    """Raises OSError where another process holds it; systems without such locks (Windows) let everybody in."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_files(checkpoint: Checkpoint, folder: Path) -> None:
    states = dict(checkpoint.states)
    details = {name: _without_states(part, name, states) for name, part in checkpoint.details.items()}
    names = [f"{name}.safetensors" for name in states]
    for name, state in zip(names, states.values(), strict=True):
        write_state_file(state, folder / name)
    record = {
        "format": FORMAT,
        "plugin": __version__,
        "host": checkpoint.host,
        "round": checkpoint.round,
        "files": names,
        "arguments": checkpoint.arguments,
        "details": details,
    }
    write_json_atomic(folder / RECORD, record)
    write_text_atomic(folder / SUMS, "".join(f"{sha256_of_file(folder / name)}  {name}\n" for name in [RECORD, *names]))


def _without_states(part: Any, name: str, states: dict[str, State]) -> Any:
    """``part`` with a reference for every state in it; these join ``states`` under ``name`` and where they stood."""
    if isinstance(part, list):
        return [_without_states(value, f"{name}-{index}", states) for index, value in enumerate(part)]
    if not isinstance(part, Mapping):
        return part
    if part and all(isinstance(value, torch.Tensor) for value in part.values()):
        states[name] = dict(part)
        return {IN_FILE: name, ORDER: list(part)}
    return {key: _without_states(value, f"{name}-{key}", states) for key, value in part.items()}


def _with_states(part: Any, states: dict[str, State]) -> Any:
    """``part`` with the states that its references name, which leave ``states``."""
    if isinstance(part, list):
        return [_with_states(value, states) for value in part]
    if not isinstance(part, dict):
        return part
    if part.keys() == {IN_FILE, ORDER}:
        state = states.pop(part[IN_FILE])
        return {name: state[name] for name in part[ORDER]}
    return {key: _with_states(value, states) for key, value in part.items()}


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
            if not name or Path(name).name != name or sha256_of_file(folder / name) != digest:
                raise _Damaged(f"{name} does not have the sum in {SUMS}")
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _Damaged(f"{Path(error.filename).name} is missing") from error
    except (NotADirectoryError, ValueError) as error:
        raise _Damaged(str(error)) from error
    if record["format"] != FORMAT:
        raise UserError(
            f"{folder} was written by another fedbias_plugin, {record['plugin']} (format {record['format']}); this is "
            f"{__version__}, which reads format {FORMAT}. Resume with the one that began the run."
        )
    if set(sums) != {RECORD, *record["files"]}:
        raise _Damaged(f"{SUMS} does not name the files that {RECORD} names")
    states = {name.removesuffix(".safetensors"): load_file(folder / name) for name in record["files"]}
    details = _with_states(record["details"], states)
    return Checkpoint(record["round"], record["arguments"], details, states, record["host"])
