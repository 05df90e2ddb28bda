"""Weights & Biases: one run per experiment, one ``log`` call a round, ``round`` as the x-axis of every curve.

Nothing here can stop or stall a run: without the package the tracker is off; without a login, or with a server that
does not answer, the run is recorded offline. Each case costs one line. ``metrics.jsonl`` holds every number anyway.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbias_plugin.tracking.categories import COLUMNS, category_history
from fedbias_plugin.tracking.jsonl import METRICS_FILE, earlier_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.series import highlights, series
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.tracking.wandb_artifacts import ArtifactLog
from fedbias_plugin.tracking.wandb_names import shown_config
from fedbias_plugin.tracking.wandb_server import import_wandb, login_source, server_url, unreachable_reason

logger = logging.getLogger(__name__)

CATEGORIES = "categories/by_round"
STAGING_VARIABLE = "WANDB_DATA_DIR"
"""Where W&B copies tables to until they are uploaded: in the home by default, where an offline run would leave them."""


class WandbTracker(Tracker):
    """Sends every round to Weights & Biases.

    A resumed experiment goes on as the same W&B run. Rounds that the server has are not sent again; those that it
    lacks are sent first, from ``metrics.jsonl``. Offline, W&B cannot append: each process writes a folder of its own
    under the same run id, the newest holds every round, and uploading it replaces what an older one left.

    Attributes:
        init_timeout: seconds that W&B may take to start an online run.
        finish_timeout: seconds that W&B may take to upload the rest at the end of an online run.
    """

    name = "wandb"
    init_timeout, finish_timeout = 30.0, 120.0
    _wandb: Any
    _info: RunInfo
    _artifacts: ArtifactLog

    def __init__(self) -> None:
        self._run: Any = None
        self._is_offline = True
        # A sweep's agent chooses the id, and so may the user.
        self._run_id, self._resumes = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), False
        self._last_on_server = self._last_round = -1
        self._stages_here = False

    def start(self, run: RunInfo) -> None:
        if run.wandb_mode == "disabled":
            return
        try:
            self._wandb = import_wandb()
        except ImportError as error:
            logger.warning("W&B is off: %s (pip install -U wandb). %s has every number.", error, METRICS_FILE)
            return
        self._info = run
        if run.wandb_mode != "online" or not self._start_online(self._wandb, run):
            self._run = self._init(self._wandb, run, "offline")
        name = os.environ.get("WANDB_NAME") or run.run_name
        self._stages_here = STAGING_VARIABLE not in os.environ
        os.environ.setdefault(STAGING_VARIABLE, str((Path(run.output_dir) / "wandb").resolve()))
        self._artifacts = ArtifactLog(self._wandb, self._run, Path(run.output_dir), name, self._run_id)

    def state_dict(self) -> dict[str, Any]:
        """The id under which another process goes on."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._run_id, self._resumes = state["run_id"], True

    def log_round(self, record: RoundRecord) -> None:
        if self._run is None:
            return
        is_first = self._last_round < 0
        for earlier in earlier_rounds(self._info.output_dir, record.round) if is_first else []:
            self._log(earlier)
        self._log(record)
        self._artifacts.log_models(record.round - 1)  # that of this round is saved later
        self._last_round = record.round

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        said = definitions(summary.get("final") or {})
        self._run.summary.update({**self._highlights(), **said, "warnings": summary.get("warnings", [])})
        if "aborted" in self._run.summary.keys():  # noqa: SIM118  # W&B's summary is no mapping
            self._run.summary.update({"aborted": None})
        self._artifacts.log_models(self._last_round, finished=True)
        self._artifacts.log_run_files()
        self._close(exit_code=0)

    def abort(self, reason: str) -> None:
        if self._run is not None:
            self._run.summary.update({**self._highlights(), "aborted": reason})
            self._artifacts.log_models(self._last_round)
            self._close(exit_code=1)

    def _start_online(self, wandb: ModuleType, run: RunInfo) -> bool:
        """Start an online run, or say in one line why not."""
        url = server_url(wandb)
        if login_source(url) is None:
            logger.warning("W&B goes offline: no login found for %s (run: wandb login).", url)
            return False
        # Asked before W&B is: a failed online start retries for long and can spoil the offline start after it.
        reason = unreachable_reason(url)
        if reason is not None:
            logger.warning("W&B goes offline: %s cannot be reached (%s).", url, reason)
            return False
        try:
            self._run = self._init(wandb, run, "online")
        except Exception as error:
            reason = " ".join(str(error).split())
            logger.warning("W&B goes offline: the online run did not start (%s: %.200s).", type(error).__name__, reason)
            try:
                wandb.teardown(exit_code=1)  # or the offline start would wait for this one too
            except Exception as second:
                logger.debug("wandb.teardown: %s", second)
            return False
        self._is_offline = False
        if self._run.resumed:
            self._last_on_server = int(self._run.summary.get("round", -1))
        return True

    def _init(self, wandb: ModuleType, run: RunInfo, mode: str) -> Any:
        """``wandb.init`` with a silent console; every curve of the run gets ``round`` as its x-axis."""
        # W&B goes to the system's temporary folder when the one it is given does not exist.
        Path(run.output_dir).mkdir(parents=True, exist_ok=True)
        called = {
            "name": ("WANDB_NAME", run.run_name),
            "group": ("WANDB_RUN_GROUP", run.group),
            "job_type": ("WANDB_JOB_TYPE", run.job_type),
            "tags": ("WANDB_TAGS", list(run.tags)),
        }
        wandb_run = wandb.init(
            project=run.wandb_project,
            dir=str(run.output_dir),
            mode=mode,
            config=shown_config(run),
            **{argument: ours for argument, (variable, ours) in called.items() if not os.environ.get(variable)},
            settings=self._settings(wandb),
            id=self._run_id,
            resume="allow" if mode == "online" else None,  # offline the id says it all, and W&B would deny it
        )
        wandb_run.define_metric("round")
        wandb_run.define_metric("*", step_metric="round")
        return wandb_run

    def _settings(self, wandb: ModuleType) -> Any:
        base = {"init_timeout": self.init_timeout, "console": "off", "silent": True}
        recent = {
            "quiet": True,
            "x_disable_meta": True,  # it holds the command line, where a host's flags may be logins
            "login_timeout": self.init_timeout,
            "finish_timeout": self.finish_timeout,
            "finish_timeout_raises": True,
        }
        try:
            return wandb.Settings(**base, **recent)
        except Exception:  # older versions refuse settings they do not know
            return wandb.Settings(**base)

    def _log(self, record: RoundRecord) -> None:
        if record.round <= self._last_on_server:
            return
        payload: dict[str, Any] = dict(series(record))
        if record.round == self._info.last_round:
            rows = category_history([*earlier_rounds(self._info.output_dir, record.round), record])
            payload |= {CATEGORIES: self._wandb.Table(columns=list(COLUMNS), data=rows)} if rows else {}
        self._run.log(payload)

    def _highlights(self) -> dict[str, float]:
        return highlights(earlier_rounds(self._info.output_dir))

    def _close(self, exit_code: int) -> None:
        run, self._run = self._run, None
        folder = Path(run.dir).parent
        sync = f"wandb sync {shlex.quote(str(folder))}"
        if self._stages_here:
            os.environ.pop(STAGING_VARIABLE, None)
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            logger.warning("W&B did not finish (%s: %s). To upload the rest: %s", type(error).__name__, error, sync)
            return
        again = " (the whole run; it replaces what an earlier part of it uploaded)" if self._resumes else ""
        where = f"recorded offline{again}. To upload it: {sync}" if self._is_offline else run.url
        print(f"W&B: {where}", flush=True)


def definitions(final: Mapping[str, Any]) -> dict[str, str]:
    """What the metrics are that say it themselves, such as a task of lm-evaluation-harness."""
    blocks = {name: block for name, block in final.items() if isinstance(block, Mapping)}
    return {f"definition/{name}": block["definition"] for name, block in blocks.items() if block.get("definition")}
