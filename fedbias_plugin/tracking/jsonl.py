"""``metrics.jsonl``, one line a round, and ``summary.json``: the record of a run that needs no service."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.files import sync_folder, write_json_atomic
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker

METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
logger = logging.getLogger(__name__)


class JsonlTracker(Tracker):
    """Appends every round to ``OUTPUT/metrics.jsonl`` and forces it to the disk before it returns.

    A run that is started again in the same folder continues the file. The last line may have been cut off by a
    crash: it is removed with a warning. A resumed run continues where its checkpoint was taken.
    """

    name = "jsonl"

    def __init__(self) -> None:
        self._path: Path | None = None
        self._position: Mapping[str, Any] | None = None

    def start(self, run: RunInfo) -> None:
        folder = Path(run.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / METRICS_FILE
        if self._position is not None:
            rewind(self._path, self._position["bytes"], self._position["sha256"])
        repair_last_line(self._path)

    def state_dict(self) -> dict[str, Any]:
        """Where the file ends now, and the hash of what it holds."""
        if self._path is None:
            return {}
        raw = self._path.read_bytes()
        return {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._position = state

    def log_round(self, record: RoundRecord) -> None:
        if self._path is None:
            raise RuntimeError("log_round before start")
        is_new = not self._path.exists()
        line = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False) + "\n"
        with open(self._path, "ab") as stream:
            stream.write(line.encode("utf-8"))
            stream.flush()
            os.fsync(stream.fileno())
        if is_new:
            sync_folder(self._path.parent)

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._path is not None:
            write_json_atomic(self._path.with_name(SUMMARY_FILE), summary)


def read_rounds(path: str | os.PathLike[str]) -> list[RoundRecord]:
    """Read ``metrics.jsonl``.

    A run that was resumed from an earlier round repeats rounds: a line replaces the earlier lines of the same round
    and of later ones. A last line without its end, cut off by a crash, is left out with a warning.

    Args:
        path: the file, or the run's folder.

    Returns:
        The rounds, in order. Empty for an empty file.

    Raises:
        UserError: no such file, or a damaged line; the message names the line.
    """
    file = Path(path)
    if file.is_dir():
        file = file / METRICS_FILE
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); a run writes it after every round.") from None
    body, tail = split_tail(raw)
    if tail:
        logger.warning("%s: the last line is cut off (a crash while it was written?) and left out.", file)
    rounds: list[RoundRecord] = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            record = _read_line(line, f"{file}, line {number}")
            rounds = [earlier for earlier in rounds if earlier.round < record.round] + [record]
    return rounds


def earlier_rounds(output_dir: str | os.PathLike[str], before: float = math.inf) -> list[RoundRecord]:
    """Rounds before round ``before`` that are recorded in a run's folder; none where nothing is."""
    path = Path(output_dir) / METRICS_FILE
    return [record for record in read_rounds(path) if record.round < before] if path.exists() else []


def rewind(path: Path, size: int, sha256: str) -> None:
    """Cut off what ``path`` holds beyond its first ``size`` bytes.

    Raises:
        UserError: these are not there, or do not have the hash ``sha256``; nothing is cut then.
    """
    raw = path.read_bytes() if path.exists() else b""
    if len(raw) < size or hashlib.sha256(raw[:size]).hexdigest() != sha256:
        raise UserError(f"{path} is not what it was when the checkpoint was written: the run cannot be resumed.")
    if len(raw) > size:
        logger.info("%s: rounds after the checkpoint are taken back and trained again.", path)
        os.truncate(path, size)


def repair_last_line(path: Path) -> None:
    """Cut a half-written last line off, with a warning, or end it where only the line end is missing."""
    raw = path.read_bytes() if path.exists() else b""
    body, tail = split_tail(raw)
    if tail:
        logger.warning("%s: the last line was cut off by a crash (%d bytes); it is removed.", path, len(tail))
        os.truncate(path, len(body))
    elif raw and not raw.endswith(b"\n"):
        with open(path, "ab") as stream:
            stream.write(b"\n")


def split_tail(raw: bytes) -> tuple[bytes, bytes]:
    """Whole lines, and what follows the last line end if that is not a whole JSON object."""
    end = raw.rfind(b"\n") + 1
    tail = raw[end:]
    try:
        whole = not tail.strip() or isinstance(json.loads(tail), dict)
    except (ValueError, RecursionError):
        whole = False
    return (raw, b"") if whole else (raw[:end], tail)


def _read_line(line: bytes, where: str) -> RoundRecord:
    try:
        data = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); is the file damaged?") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {first_line(error)}; is the file damaged?") from None
    if not isinstance(data, dict):
        raise UserError(f"{where}: holds a JSON {type(data).__name__}, a round is an object.")
    try:
        return RoundRecord.from_json(data)
    except ValueError as error:
        raise UserError(f"{where}: {error}.") from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
