"""TensorBoard: event files in ``OUTPUT/tensorboard``, curves as in Weights & Biases, and one a category."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbias_plugin.tracking.categories import COLUMNS, category_rows
from fedbias_plugin.tracking.jsonl import METRICS_FILE, earlier_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.series import highlights, series
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.tracking.wandb_names import shown_config

FOLDER = "tensorboard"
logger = logging.getLogger(__name__)


class TensorboardTracker(Tracker):
    """Writes every round to an event file and flushes it.

    A process that resumes a run writes all its rounds anew, from ``metrics.jsonl``, and tells TensorBoard to forget
    those in earlier files: no step appears twice, and none is missing that did not get onto the disk.
    """

    name = "tensorboard"
    _info: RunInfo

    def __init__(self) -> None:
        self._module: ModuleType | None = None
        self._writer: Any = None

    def start(self, run: RunInfo) -> None:
        try:
            import torch.utils.tensorboard
        except ImportError as error:
            missing = getattr(error, "name", None) or error
            logger.warning(
                "TensorBoard is off: the package %s is not installed (pip install tensorboard). %s has every number.",
                *(missing, METRICS_FILE),
            )
            return
        self._module, self._info = torch.utils.tensorboard, run

    def log_round(self, record: RoundRecord) -> None:
        if self._module is None:
            return
        if self._writer is None:
            self._open(self._module)
            for earlier in earlier_rounds(self._info.output_dir, record.round):
                self._write(earlier)
        self._write(record)
        self._writer.flush()

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._add_json("summary", highlights(earlier_rounds(self._info.output_dir)))
            self._close()

    def abort(self, reason: str) -> None:
        if self._writer is not None:
            self._writer.add_text("aborted", _as_code(reason), global_step=0)
            self._close()

    def _open(self, module: ModuleType) -> None:
        run, folder = self._info, Path(self._info.output_dir) / FOLDER
        has_earlier = any(folder.glob("events.*"))
        self._writer = module.SummaryWriter(str(folder), purge_step=0 if has_earlier else None)
        names = {"name": run.run_name, "group": run.group, "job_type": run.job_type, "tags": list(run.tags)}
        self._add_json("config", shown_config(run))
        self._add_json("run", names)

    def _write(self, record: RoundRecord) -> None:
        scalars: dict[str, Any] = dict(series(record))
        for row in category_rows(record):
            values = dict(zip(COLUMNS, row, strict=True))
            if values["score"] is not None:
                scalars[f"categories/{values['benchmark']}/{values['category']}"] = values["score"]
        for key, value in scalars.items():
            self._writer.add_scalar(key, value, global_step=record.round)

    def _add_json(self, tag: str, content: Mapping[str, Any]) -> None:
        self._writer.add_text(tag, _as_code(json.dumps(content, indent=1, ensure_ascii=False)), global_step=0)

    def _close(self) -> None:
        writer, self._writer, self._module = self._writer, None, None
        writer.close()


def _as_code(text: str) -> str:
    """``text`` as an indented Markdown block, in which nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())
