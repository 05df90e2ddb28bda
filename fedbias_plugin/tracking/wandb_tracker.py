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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbias_plugin.files import plain_json
from fedbias_plugin.tracking.flatten import CATEGORY_COLUMNS, category_rows, flatten_record
from fedbias_plugin.tracking.highlights import HISTORY_COLUMNS, Highlights, earlier_rounds
from fedbias_plugin.tracking.jsonl import METRICS_FILE
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.tracking.wandb_artifacts import ArtifactLog
from fedbias_plugin.tracking.wandb_server import login_source, server_url, unreachable_reason

logger = logging.getLogger(__name__)

STAGING_VARIABLE = "WANDB_DATA_DIR"
"""Where W&B copies tables to until they are uploaded: in the home by default, where an offline run would leave them."""
METRIC_SUMMARIES = {
    "global/bias_score": "min,last",
    "global/delta": "min,last",
    "global/crows_pairs/delta": "min,last",
    "global/stereoset/delta": "min,last",
    "global/heldout_loss": "min,last",
    "global/heldout_perplexity": "min,last",
    "aggregation/weight_on_poisoned": "mean,last",
}
"""What W&B's table of runs shows of a curve beside ``final/...`` and ``best/...``; of others its last value."""


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
        # A sweep's agent chooses the id, and so may the user.
        self._run_id, self._resumes = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), False
        self._last_on_server = self._last_round = -1
        self._highlights = Highlights()
        self._artifacts: ArtifactLog | None = None
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
        if self._first_round is None:
            assert self._info is not None
            for earlier in earlier_rounds(self._info.output_dir, record.round):
                self._log(earlier)
        self._log(record)
        self._send_models(record.round - 1)  # that of this round is saved later
        self._last_round = record.round

    def finish(self, summary: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        plain, _ = plain_json(summary)
        # The configuration is in the run's config already.
        self._run.summary.update({key: value for key, value in plain.items() if key != "config"})
        self._run.summary.update(self._highlights.scalars())
        if "aborted" in self._run.summary.keys():  # noqa: SIM118  # W&B's summary is no mapping
            self._run.summary.update({"aborted": None})
        self._send_models(self._last_round, finished=True)
        if self._artifacts is not None:
            self._artifacts.log_run_files()
        self._close(exit_code=0)

    def abort(self, reason: str) -> None:
        if self._run is not None:
            self._run.summary.update({**self._highlights.scalars(), "aborted": reason})
            self._send_models(self._last_round)
            self._close(exit_code=1)

    def _send_models(self, last_round: int, *, finished: bool = False) -> None:
        if self._artifacts is not None:
            self._artifacts.log_models(last_round, finished=finished)

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
        poisoned = sorted(client for client, share in run.poisoned_shares.items() if share > 0)
        config, _ = plain_json({**run.config, "poisoned_clients": poisoned})
        # W&B goes to the system's temporary folder when the one it is given does not exist.
        Path(run.output_dir).mkdir(parents=True, exist_ok=True)
        wandb_run = wandb.init(
            project=run.wandb_project,
            dir=str(run.output_dir),
            mode=mode,
            config=config,
            **_names(run),
            settings=self._settings(wandb),
            id=self._run_id,
            resume="allow" if mode == "online" else None,  # offline the id says it all, and W&B would deny it
        )
        wandb_run.define_metric("round")
        for key, summary in METRIC_SUMMARIES.items():
            wandb_run.define_metric(key, step_metric="round", summary=summary)
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

    def _log(self, record: RoundRecord) -> None:
        assert self._info is not None
        assert self._wandb is not None
        is_first = self._first_round is None
        if is_first:
            self._first_round = record.round
        self._highlights.add(record)
        if record.round <= self._last_on_server:
            return
        payload: dict[str, Any] = dict(flatten_record(record))
        if is_first:
            self._add_table(payload, "categories/first", CATEGORY_COLUMNS, category_rows(record))
        elif record.round == self._info.last_round:
            self._add_table(payload, "categories/last", CATEGORY_COLUMNS, category_rows(record))
            self._add_table(payload, "categories/by_round", HISTORY_COLUMNS, self._highlights.category_rows())
        self._run.log(payload)

    def _add_table(self, payload: dict[str, Any], key: str, columns: Sequence[str], rows: list[list[Any]]) -> None:
        if rows:
            assert self._wandb is not None
            payload[key] = self._wandb.Table(columns=list(columns), data=rows)

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
        where = f"recorded offline{again}. To upload it: {sync}" if self._is_offline else f"{run.url}"
        print(f"W&B: {where}", flush=True)


def _names(run: RunInfo) -> dict[str, Any]:
    """Arguments of ``wandb.init`` that say what the run is called, without those that the user's environment gives."""
    ours = {
        "name": ("WANDB_NAME", run.run_name),
        "group": ("WANDB_RUN_GROUP", run.group),
        "job_type": ("WANDB_JOB_TYPE", run.job_type),
        "tags": ("WANDB_TAGS", list(run.tags)),
    }
    return {argument: value for argument, (variable, value) in ours.items() if not os.environ.get(variable)}


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
