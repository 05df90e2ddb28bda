"""``--launcher local``: runs as child processes of this one, one a GPU, or as many as ``--jobs`` says."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.stopping import StopSignals
from fedbias_plugin.sweep.jobs import Job

POLL = 0.2
"""Seconds between two looks at the children."""


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    slot: int


def slots(jobs: int | None) -> list[dict[str, str]]:
    """What each run that may go on at the same time gets in its environment.

    Args:
        jobs: how many; without it one a GPU, and one alone without GPUs.

    Raises:
        UserError: more than one run a GPU.
    """
    gpus = _gpus()
    if gpus:
        if jobs is not None and jobs > len(gpus):
            raise UserError(f"--jobs {jobs}: there are {len(gpus)} GPUs, and each takes one run.")
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:jobs]]
    count = jobs or 1
    threads = max(1, (os.cpu_count() or 1) // count)
    given = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
    return [dict(given) for _ in range(count)]


def run_locally(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    on_end: Callable[[Job, int | str], None],
) -> None:
    """Run every job, as many at a time as there are ``environments``; one that fails stops no other.

    A signal that asks this process to stop is handed on: every run ends its step, writes its checkpoint and goes.

    Args:
        jobs: in this order.
        environments: additions to the environment, one for each run that goes on at the same time.
        on_end: called with the job and its exit code when it has ended.

    Raises:
        Stopped: a signal asked for it, and every run has ended.
    """
    waiting, running = list(jobs), list[_Running]()
    free = list(range(len(environments)))
    with StopSignals() as stop:
        try:
            while waiting or running:
                while waiting and free:
                    slot = free.pop(0)
                    job = waiting.pop(0)
                    running.append(_Running(job, _start(job, environments[slot]), slot))
                stop.check()
                time.sleep(POLL)
                for ended in [one for one in running if one.process.poll() is not None]:
                    running.remove(ended)
                    free.append(ended.slot)
                    on_end(ended.job, ended.process.returncode)
        except BaseException:
            _end(running)
            raise


def _start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, **job.environment},
            start_new_session=True,  # Ctrl-C comes from here, once
        )


def _end(running: Sequence[_Running]) -> None:
    """Ask every child to stop and wait for it; a second signal, which comes here as an exception, kills them."""
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    try:
        for one in running:
            one.process.wait()
    except BaseException:
        for one in running:
            one.process.kill()
        raise


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    import torch

    count = torch.cuda.device_count()
    given = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return given[:count] if given else [str(number) for number in range(count)]
