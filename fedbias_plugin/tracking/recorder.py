"""Opens a run's files and trackers at its first record, feeds them and closes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.run_files import summarise, write_item_scores
from fedbias_plugin.tracking.tracker import Tracker


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
        self._writes, self._details = writes, files["run.json"]
        if writes:
            for name, content in files.items():
                write_json_atomic(self._output_dir / name, content)
            self._trackers.start(info)
        self.is_open = True

    def log_round(self, record: RoundRecord, item_scores: Mapping[str, Any]) -> None:
        """Write one round; ``item_scores``: benchmark name -> scores of the global model's items."""
        if self._writes:
            for name, scores in item_scores.items():
                write_item_scores(self._output_dir, record.round, name, scores)
            self._trackers.log_round(record)

    def close(self, history: Sequence[RoundRecord], failure: str | None = None) -> None:
        """Write ``summary.json``, or mark the run failed; a run that is not open stays as it is."""
        was_open, self.is_open = self.is_open, False
        if was_open and self._writes:
            if failure is None:
                self._trackers.finish(summarise(history, self._details))
            else:
                self._trackers.abort(failure)
