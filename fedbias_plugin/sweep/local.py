"""``--launcher local``: runs on this machine, one a GPU, or as many as ``--jobs`` says.

Without a GPU they are forks of one process that has loaded the libraries. With GPUs each run is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.stopping import StopSignals
from fedbias_plugin.machine import cores
from fedbias_plugin.sweep.base import Job, Launcher, OnEnd, OnRunning
from fedbias_plugin.sweep.forks import fork

Process = subprocess.Popen[bytes] | BaseProcess
POLL = 0.2
"""Seconds between two looks at the children."""


@dataclass
class LocalLauncher(Launcher):
    """On this machine."""

    runs_here = True

    @property
    def at_once(self) -> int:
        return len(self.slots())

    def slots(self) -> list[dict[str, str]]:
        """What each run that may go on at the same time gets in its environment.

        Raises:
            UserError: more than one run a GPU.
        """
        gpus = _gpus()
        if gpus:
            if self.jobs is not None and self.jobs > len(gpus):
                raise UserError(f"--jobs {self.jobs}: there are {len(gpus)} GPUs, and each takes one run.")
            return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: self.jobs]]
        count = self.jobs or 1
        threads = max(1, cores() // count)
        given = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        return [dict(given) for _ in range(count)]

    def run(self, jobs: Sequence[Job], folder: Path, on_running: OnRunning, on_end: OnEnd) -> None:
        """As :meth:`Launcher.run`; a signal is handed on: every run ends its step, writes its checkpoint and goes."""
        waiting, free = list(jobs), self.slots()
        running: list[tuple[Job, dict[str, str], Process]] = []
        with StopSignals("the runs stop after their step; once more stops them at once") as stop:
            try:
                while waiting or running:
                    while waiting and free:
                        job, slot = waiting.pop(0), free.pop(0)
                        on_running([*(one for one, _, _ in running), job])
                        running.append((job, slot, _start(job, slot)))
                    stop.check()
                    time.sleep(POLL)
                    for one in list(running):
                        job, slot, process = one
                        if (code := _exit_code(process)) is None:
                            continue
                        running.remove(one)
                        free.append(slot)
                        on_end(job, code)
                        on_running([job for job, _, _ in running])
            except BaseException:
                _end([process for _, _, process in running])
                raise


def _start(job: Job, slot: Mapping[str, str]) -> Process:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **slot, **job.environment}
    if "CUDA_VISIBLE_DEVICES" not in slot and (forked := fork(job, environment)):
        return forked
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C comes from here, once
        )


def _exit_code(process: Process) -> int | None:
    """Of a child or a fork, or minus the signal that ended it; None while it runs."""
    return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode


def _end(processes: Sequence[Process]) -> None:
    """Ask every child to stop and wait for it; a second signal, which comes here as an exception, kills them."""
    for process in processes:
        process.terminate()
    try:
        while any(_exit_code(process) is None for process in processes):
            time.sleep(POLL)
    except BaseException:
        for process in processes:
            process.kill()
        raise


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    import torch

    count = torch.cuda.device_count()
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return given[:count] if given else [str(number) for number in range(count)]
