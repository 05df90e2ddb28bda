"""Runs ``fedbias`` in forks of one process that has imported everything, to be killed by test_crashes.py.

One JSON object a line comes in: ``args``, ``log`` (file for what the run says) and, if wanted, ``moment`` (where the
run kills itself), ``file_limit`` (bytes of the largest file it may write) or ``obeys_modes`` (also when it is root's).
``{"pid": N}`` goes out at once, ``{"status": exit code or minus the signal, "moments": N}`` when the run is over.

A *moment* is what can be torn in two: an optimizer step, a scored batch, a file forced to the disk, a rename, a folder
deleted, half of a line of metrics.jsonl, half of a file of a checkpoint.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from fedbias_plugin.cli.main import main
from fedbias_plugin.federation import checkpoints
from fedbias_plugin.federation.client import Client
from fedbias_plugin.hosts.builtin import loop  # noqa: F401  # the forks have it imported
from fedbias_plugin.scoring import scorer
from fedbias_plugin.tracking import jsonl


class Moments:
    """Counts moments, and kills this process at the one that was asked for."""

    def __init__(self, fatal: int | None) -> None:
        self.fatal, self.count = fatal, 0

    def passes(self, tear: Callable[[], None] | None = None) -> None:
        self.count += 1
        if self.count == self.fatal:
            if tear is not None:
                tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, module: Any, name: str) -> None:
        """Every call of ``module.name`` is a moment."""
        function = getattr(module, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.passes()
            return function(*args, **kwargs)

        setattr(module, name, watched)


class EveryStep(TrainerCallback):
    """An optimizer step is a moment."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.moments.passes()


def watch(moments: Moments) -> None:
    for module, name in ((os, "fsync"), (os, "replace"), (shutil, "rmtree"), (scorer, "batch_log_probs")):
        moments.before(module, name)
    attach, log_round, write = Client.attach, jsonl.JsonlTracker.log_round, checkpoints.write_state_file

    def attach_counted(self: Client, trainer: Any, job: Any) -> None:
        trainer.add_callback(EveryStep(moments))
        attach(self, trainer, job)

    def half_a_line(self: Any, record: Any) -> None:
        line = json.dumps(record.to_json()).encode()

        def tear() -> None:
            with open(self._path, "ab") as stream:
                stream.write(line[: len(line) // 2])

        moments.passes(tear)
        log_round(self, record)

    def half_a_file(state: Any, path: Path, **options: Any) -> None:
        write(state, path, **options)
        moments.passes(lambda: os.truncate(path, path.stat().st_size // 2))

    Client.attach, jsonl.JsonlTracker.log_round, checkpoints.write_state_file = (
        attach_counted,
        half_a_line,
        half_a_file,
    )


def obey_modes() -> None:
    """Give up what lets root write to folders that are read-only."""
    header, no_rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, no_rights):
        raise OSError(ctypes.get_errno(), "capset")


def run(request: dict[str, Any], result: int) -> None:
    """In the fork: leaves with the command's code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    moments = Moments(request.get("moment"))
    watch(moments)
    if "file_limit" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"], resource.RLIM_INFINITY))
    if request.get("obeys_modes"):
        obey_modes()
    code = main(request["args"])
    os.write(result, str(moments.count).encode())
    os._exit(code)


def heed_signals() -> None:
    """As in a terminal; a test run in the background, or under nohup, is started with some of them ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def serve() -> None:
    heed_signals()
    gc.freeze()
    gc.disable()  # over the libraries' objects, whose pages it copies, it takes a quarter of such short runs
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                run(request, write)
            finally:
                os._exit(99)
        os.close(write)
        print(json.dumps({"pid": pid}), flush=True)
        counted = os.read(read, 20)
        os.close(read)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "moments": int(counted or 0)}), flush=True)


if __name__ == "__main__":
    serve()
