"""What runs on the compute node: one command as a child process, which Slurm may interrupt and begin again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

from fedbias_plugin.errors import first_line
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.sweep.base import Job

LONGEST_GOODBYE = 600
"""Seconds that a stopped task waits for Slurm's kill."""


class Task:
    """Runs a job's command; submitit pickles it, calls it on the compute node, and requeues it.

    - SIGUSR2 (the time limit is near, or a preemption): submitit calls :meth:`checkpoint`, which stops the command,
      and puts the task into the queue again.
    - SIGTERM (a preemption, ``scontrol requeue``, ``scancel``): the command is stopped, and the task stays until Slurm
      kills it. Whether it is over or runs again is for Slurm to say; a task that left by itself would have failed.

    Args:
        job: to be run. It must be safe to run again.
        end: a file, on a disk that all nodes share, that takes the exit code (or a reason) as JSON.
    """

    def __init__(self, job: Job, end: Path) -> None:
        self.job, self.end = job, end
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def __call__(self) -> None:
        """Run the command to its end; leaves with its exit code where that is not 0.

        Raises:
            SystemExit: with the exit code.
        """
        self.end.unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, self._stop)
        try:
            child = self._start()
            if self._stopped:
                self._stop()  # the signal came before there was a child
            _wait(child)
            code = child.wait()
        except Exception as error:  # submitit's too, in the middle of the wait: the limit was met too often
            write_json_atomic(self.end, first_line(error))
            raise
        code = code if code >= 0 else 128 - code
        write_json_atomic(self.end, code)
        if code and self._stopped:
            time.sleep(LONGEST_GOODBYE)
        if code:
            raise SystemExit(code)

    def checkpoint(self) -> Any:
        """Stop the command, and say how to go on: with the same one. For submitit, which calls it in a handler."""
        from submitit.core.utils import DelayedSubmission

        if self._child is not None:
            self._stop()
            _wait(self._child)
        return DelayedSubmission(Task(self.job, self.end))

    def _start(self) -> subprocess.Popen[bytes]:
        # Where Slurm signals every process of a job, submitit's signal would kill a command that does not know it.
        # What is blocked now stays blocked in the child, and reaches this process when the block ends.
        not_for_the_child = signal.SIGUSR2, signal.SIGUSR1  # SUBMITIT_PREEMPT_SIGNAL chooses
        self.job.log.parent.mkdir(parents=True, exist_ok=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, not_for_the_child)
        try:
            with open(self.job.log, "ab") as log:
                environment = {**os.environ, **self.job.environment}
                self._child = subprocess.Popen(
                    self.job.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, not_for_the_child)
        return self._child

    def _stop(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        self._stopped = True
        if self._child is not None and self._child.returncode is None:
            os.kill(self._child.pid, signal.SIGTERM)  # Popen.send_signal would take the exit code from who waits for it


def read_end(path: Path) -> int | str | None:
    """The exit code or the reason that a task has left in ``path``; None where there is none yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _wait(child: subprocess.Popen[bytes]) -> None:
    """Wait until ``child`` has ended. ``Popen.wait`` holds a lock, and would block in a signal's handler."""
    if child.returncode is None:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
