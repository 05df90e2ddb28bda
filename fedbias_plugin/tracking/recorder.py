"""Opens a run's files and trackers at its first record, feeds them and closes them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import plain_json, write_json_atomic
from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.run_files import summarise, write_item_scores
from fedbias_plugin.tracking.tracker import Tracker

RUN_FILE = "run.json"
logger = logging.getLogger(__name__)


class RunRecorder:
    """Where a session's numbers go: the files of the run's folder, and trackers.

    Args:
        output_dir: the run's folder; made when the run is opened.
        trackers: what is fed beside the files.

    Attributes:
        is_open: whether the run has been opened and not been closed.
    """

    def __init__(self, output_dir: Path, trackers: Tracker) -> None:
        self._output_dir = output_dir
        self._trackers = trackers
        self._details: Mapping[str, Any] = {}
        self._writes = True
        self.is_open = False

    def open(self, files: Mapping[str, Any], info: RunInfo, *, writes: bool) -> None:
        """Write what is known before training and start the trackers.

        Args:
            files: name -> content of the JSON files; what ``run.json`` holds goes into the summary too.
            info: what trackers are told.
            writes: False in every process but the main one, which records the run for all.
        """
        self._writes, self._details = writes, files[RUN_FILE]
        if writes:
            for name, content in files.items():
                write_json_atomic(self._output_dir / name, content)
            self._trackers.start(info)
        self.is_open = True

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`resume` needs; JSON-ready."""
        return self._trackers.state_dict() if self._writes else {}

    def resume(self, state: Mapping[str, Any], info: RunInfo, versions: Mapping[str, str], *, writes: bool) -> None:
        """Open a run that another process began; records after ``state`` was taken are cut off.

        Where nothing was recorded by then, the run is left to be opened by :meth:`open`.

        Args:
            state: from :meth:`state_dict`.
            info: what trackers are told.
            versions: of this process; a warning names those that the run did not begin with.
            writes: as for :meth:`open`.

        Raises:
            UserError: the run's files are damaged.
        """
        if "jsonl" not in state:  # taken before anything was recorded
            self._trackers.load_state_dict(state)
            return
        self._writes, self._details = writes, _read_run_file(self._output_dir / RUN_FILE)
        changed = changes(self._details.get("versions", {}), versions)
        if changed:
            named = ", ".join(f"{name} {before} -> {now}" for name, (before, now) in changed.items())
            logger.warning("The run began with other versions (%s): numbers may differ a little.", named)
        if writes:
            self._trackers.load_state_dict(state)
            self._trackers.start(info)
            self._note_resume(info, versions)
        self.is_open = True

    def _note_resume(self, info: RunInfo, versions: Mapping[str, str]) -> None:
        """Add to ``run.json`` after which round, and with which other versions and flags, the run goes on."""
        note = {
            "after_round": read_rounds(self._output_dir)[-1].round,
            "versions": changes(self._details.get("versions", {}), versions),
            "config": changes(self._details.get("config", {}), plain_json(info.config)[0]),
        }
        self._details = {**self._details, "resumed": [*self._details.get("resumed", []), note]}
        write_json_atomic(self._output_dir / RUN_FILE, self._details)

    def log_round(self, record: RoundRecord, item_scores: Mapping[str, Any]) -> None:
        """Write one round, and of ``item_scores`` (metric -> scores of the global model's items) those with ``ids``."""
        if self._writes:
            for name, scores in item_scores.items():
                if hasattr(scores, "ids"):
                    write_item_scores(self._output_dir, record.round, name, scores)
            self._trackers.log_round(record)

    def close(self, failure: str | None = None) -> None:
        """Write ``summary.json``, or mark the run failed; a run that is not open stays as it is."""
        was_open, self.is_open = self.is_open, False
        if was_open and self._writes:
            if failure is None:
                self._trackers.finish(summarise(read_rounds(self._output_dir), self._details))
            else:
                self._trackers.abort(failure)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Name -> [before, now], for what is not the same."""
    names = sorted(before.keys() | now.keys())
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}


def _read_run_file(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}, which the run began with, cannot be read: {error}") from None
