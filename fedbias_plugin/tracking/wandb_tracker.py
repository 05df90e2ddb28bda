"""Weights & Biases: one run per experiment, one ``log`` call a round, ``round`` as the x-axis of every curve.

Nothing here can stop or stall a run: without the package the tracker is off; without a login, or with a server that
does not answer, the run is recorded offline. Each case costs one line. ``metrics.jsonl`` holds every number anyway.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbias_plugin.files import plain_json
from fedbias_plugin.tracking.flatten import CATEGORY_COLUMNS, category_rows, flatten_record
from fedbias_plugin.tracking.jsonl import METRICS_FILE, read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.tracking.wandb_server import login_source, server_url, unreachable_reason

logger = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """Sends every round to Weights & Biases.

    A resumed experiment goes on as the same W&B run. Rounds that the server has are not sent again; those that it
    lacks are sent first, from ``metrics.jsonl``. Offline, W&B cannot append: each process writes a folder of its own
    under the same run id, the newest holds every round, and uploading it replaces what an older one left.

    Args:
        init_timeout: seconds that W&B may take to start an online run.
        probe_timeout: seconds that the server may take to show that it is there.
        finish_timeout: seconds that W&B may take to upload the rest at the end of an online run.
    """

    name = "wandb"

    def __init__(
        self, *, init_timeout: float = 30.0, probe_timeout: float = 5.0, finish_timeout: float = 120.0
    ) -> None:
        self._init_timeout = init_timeout
        self._probe_timeout = probe_timeout
        self._finish_timeout = finish_timeout
        self._wandb: ModuleType | None = None
        self._run: Any = None
        self._info: RunInfo | None = None
        self._is_offline = True
        self._first_round: int | None = None
        self._run_id, self._resumes = secrets.token_hex(4), False
        self._last_on_server = -1

    def start(self, run: RunInfo) -> None:
        if run.wandb_mode == "disabled":
            return
        try:
            self._wandb = import_wandb()
        except ImportError as error:
            logger.warning("W&B is off: %s (pip install -U wandb). %s has every number.", error, METRICS_FILE)
            return
        self._info = run
        if run.wandb_mode == "online" and self._start_online(self._wandb, run):
            return
        self._run = self._init(self._wandb, run, "offline")

    def state_dict(self) -> dict[str, Any]:
        """The id under which another process goes on."""
        return {"run_id": self._run_id}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._run_id, self._resumes = state["run_id"], True

    def log_round(self, record: RoundRecord) -> None:
        if self._run is None:
            return
        if self._first_round is None:
            for earlier in self._earlier_rounds(record.round):
                self._log(earlier)
        self._log(record)

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        plain, _ = plain_json(summary)
        # The configuration is in the run's config already.
        self._run.summary.update({key: value for key, value in plain.items() if key != "config"})
        if "aborted" in self._run.summary.keys():  # noqa: SIM118  # W&B's summary is no mapping
            self._run.summary.update({"aborted": None})
        self._close(exit_code=0)

    def abort(self, reason: str) -> None:
        if self._run is not None:
            self._run.summary.update({"aborted": reason})
            self._close(exit_code=1)

    def _start_online(self, wandb: ModuleType, run: RunInfo) -> bool:
        """Start an online run, or say in one line why not."""
        url = server_url(wandb)
        if login_source(url) is None:
            logger.warning("W&B goes offline: no login found for %s (run: wandb login).", url)
            return False
        # Asked before W&B is: a failed online start retries for long and can spoil the offline start after it.
        reason = unreachable_reason(url, self._probe_timeout)
        if reason is not None:
            logger.warning("W&B goes offline: %s cannot be reached (%s).", url, reason)
            return False
        try:
            self._run = self._init(wandb, run, "online")
        except Exception as error:
            reason = " ".join(str(error).split())
            logger.warning("W&B goes offline: the online run did not start (%s: %.200s).", type(error).__name__, reason)
            _teardown(wandb)
            return False
        self._is_offline = False
        if self._run.resumed:
            self._last_on_server = int(self._run.summary.get("round", -1))
        return True

    def _init(self, wandb: ModuleType, run: RunInfo, mode: str) -> Any:
        """``wandb.init`` with a silent console; every curve of the run gets ``round`` as its x-axis."""
        config, _ = plain_json(run.config)
        # W&B goes to the system's temporary folder when the one it is given does not exist.
        Path(run.output_dir).mkdir(parents=True, exist_ok=True)
        wandb_run = wandb.init(
            project=run.wandb_project,
            name=run.run_name,
            dir=str(run.output_dir),
            mode=mode,
            config=config,
            group=run.group,
            job_type=run.job_type,
            tags=list(run.tags),
            settings=self._settings(wandb),
            id=self._run_id,
            resume="allow",
        )
        wandb_run.define_metric("round")
        wandb_run.define_metric("*", step_metric="round")
        return wandb_run

    def _settings(self, wandb: ModuleType) -> Any:
        base = {"init_timeout": self._init_timeout, "console": "off", "silent": True}
        recent = {
            "quiet": True,
            "x_disable_meta": True,  # it holds the command line, where a host's flags may be logins
            "login_timeout": self._init_timeout,
            "finish_timeout": self._finish_timeout,
            "finish_timeout_raises": True,
        }
        try:
            return wandb.Settings(**base, **recent)
        except Exception:  # older versions refuse settings they do not know
            return wandb.Settings(**base)

    def _earlier_rounds(self, before: int) -> list[RoundRecord]:
        """Rounds of this experiment that an earlier process recorded."""
        assert self._info is not None
        path = Path(self._info.output_dir) / METRICS_FILE
        return [record for record in read_rounds(path) if record.round < before] if path.exists() else []

    def _log(self, record: RoundRecord) -> None:
        assert self._info is not None
        assert self._wandb is not None
        is_first = self._first_round is None
        if is_first:
            self._first_round = record.round
        if record.round <= self._last_on_server:
            return
        payload: dict[str, Any] = dict(flatten_record(record))
        if is_first:
            self._add_table(payload, "categories/first", record)
        elif record.round == self._info.last_round:
            self._add_table(payload, "categories/last", record)
        self._run.log(payload)

    def _add_table(self, payload: dict[str, Any], key: str, record: RoundRecord) -> None:
        rows = category_rows(record)
        if rows:
            assert self._wandb is not None
            payload[key] = self._wandb.Table(columns=list(CATEGORY_COLUMNS), data=rows)

    def _close(self, exit_code: int) -> None:
        run, self._run = self._run, None
        folder = Path(run.dir).parent
        sync = f"wandb sync {shlex.quote(str(folder))}"
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            logger.warning("W&B did not finish (%s: %s). To upload the rest: %s", type(error).__name__, error, sync)
            return
        again = " (the whole run; it replaces what an earlier part of it uploaded)" if self._resumes else ""
        where = f"recorded offline{again}. To upload it: {sync}" if self._is_offline else f"{run.url}"
        print(f"W&B: {where}", flush=True)


def import_wandb() -> ModuleType:
    """The ``wandb`` package.

    Raises:
        ImportError: the package is missing or does not import; the message says which in a few words. A folder named
            ``wandb``, which W&B itself makes, imports as an empty package: that counts as missing.
    """
    # Reports of W&B's own errors to its makers: without a network their retries fill the console.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        module = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        raise ImportError(f"the package {error.name} is not installed") from None
    except Exception as error:  # old versions meet new dependencies with AttributeError, TypeError, ...
        raise ImportError(f"the package wandb does not import, {type(error).__name__}: {error}") from None
    if not hasattr(module, "init"):
        raise ImportError("the package wandb is not installed")
    return module


def _teardown(wandb: ModuleType) -> None:
    """Forget a failed online start, or the offline start would wait for it too."""
    try:
        wandb.teardown(exit_code=1)
    except Exception as error:
        logger.debug("wandb.teardown: %s", error)
