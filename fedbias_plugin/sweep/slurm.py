"""``--launcher slurm``: the runs of a sweep as one array job of a Slurm cluster, submitted through submitit.

Everything is in ``FOLDER/slurm/fedbias-1a2b3c4d/``, one folder a submission, which bears the name that the job has in
Slurm: ``tasks.json`` (the runs, by their place in the array), ``end_0.json`` (the exit code of a task), and submitit's
own files. Those hold pickles: the process that submits writes them and the tasks it starts read them, as the same user.
This package loads no pickle, and none from elsewhere: what it learns from a task is JSON.

``tasks.json`` is written before Slurm hears of the job. A sweep that is started again, even after a kill between the
two, therefore finds its runs in the queue by that name, and waits for them instead of starting them twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fedbias_plugin.errors import Stopped, UserError, quoted
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.hosts.builtin.stopping import StopSignals
from fedbias_plugin.options import option
from fedbias_plugin.sweep.base import Job, Launcher, OnEnd, OnRunning
from fedbias_plugin.sweep.slurm_task import Task, read_end

logger = logging.getLogger(__name__)

OWN_PARAMETERS = {
    **dict.fromkeys(("array", "job-name", "output", "error", "open-mode", "signal", "nodes"), "fedbias sets it"),
    **dict.fromkeys(("ntasks", "ntasks-per-node"), "a run is one task"),
    **dict.fromkeys(("partition", "time", "gpus-per-node", "cpus-per-task", "mem"), "it has an option of its own"),
}
MOST_TIME_LIMITS = 20
"""How often a run may meet the time limit and be requeued, so that one that never gets to a checkpoint ends."""
ENDED = {
    **{"COMPLETED": None, "FAILED": None, "PREEMPTED": None},  # the task knows more, or will run again
    **{"CANCELLED": "cancelled", "TIMEOUT": "timed out", "DEADLINE": "timed out", "NODE_FAIL": "node failed"},
    **{"BOOT_FAIL": "node failed", "OUT_OF_MEMORY": "out of memory", "REVOKED": "cancelled"},
}
"""Slurm's final states, and the reason to report where the state says it."""
PATIENCE = 30.0
"""Seconds in which a task's last file must appear: shared disks show new files late."""

Place = tuple[str, int]
"""A task: the name of its submission and its place in the array."""


@dataclass
class SlurmLauncher(Launcher):
    """Flags of --launcher slurm.

    A task that is preempted, requeued or out of time runs its command again.

    Raises:
        UserError: a number that is too small, or a parameter that is set elsewhere or has no such name.
    """

    slurm_partition: str | None = option(None, "partition (the cluster's default)")
    slurm_time: int = option(24 * 60, "minutes a run may take before it is requeued and goes on", at_least=1)
    slurm_gpus: int = option(1, "GPUs of a run", at_least=0)
    slurm_cpus: int = option(4, "CPU cores of a run", at_least=1)
    slurm_memory: int | None = option(None, "memory of a run, GiB (the cluster's default)", at_least=1)
    slurm_extra: str | None = option(None, "more parameters of sbatch, such as account=bias,qos=long")
    slurm_setup: str | None = option(None, "shell command before each run, such as 'module load cuda'")
    poll_seconds: ClassVar[float] = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.extra.items():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "\n" in value:
                raise UserError(f"slurm parameter {quoted(name)}: give sbatch's long name without --, as account=NAME")
            if name in OWN_PARAMETERS:
                raise UserError(f"slurm parameter {name}: {OWN_PARAMETERS[name]}.")

    @property
    def extra(self) -> dict[str, str]:
        """``account=bias,exclusive`` as a mapping; a parameter without ``=`` takes no value."""
        parts = (part.strip().partition("=") for part in (self.slurm_extra or "").split(","))
        return {name: value for name, _, value in parts if name}

    @property
    def at_once(self) -> int:
        return self.jobs or 16

    def run(self, jobs: Sequence[Job], folder: Path, on_running: OnRunning, on_end: OnEnd) -> None:
        """As :meth:`Launcher.run`; runs that are in the queue already are waited for. Paths are on a shared disk.

        ``on_end`` gets an exit code, or ``cancelled``, ``timed out``, ``node failed``, ``out of memory`` or another
        reason. When this process is stopped, the tasks go on.
        """
        _check_installed()
        folder = folder.resolve() / "slurm"
        if "%" in str(folder):
            raise UserError(f"The folder {folder} has a % in its name, which Slurm would replace; give another one.")
        new = {job.name: job for job in jobs}
        waiting: dict[Place, Job] = {}
        arrays = set()
        names = {path.parent.name: json.loads(path.read_bytes()) for path in sorted(folder.glob("*/tasks.json"))}
        for (submission, place), entry in _queue(names).items():
            if entry.state not in ENDED and names[submission][place] in new:
                waiting[submission, place] = new.pop(names[submission][place])
                arrays.add(entry.array)
        if waiting:
            logger.info("%d runs are in Slurm's queue already, and are waited for.", len(waiting))
        if new:
            submission, array = self._submit(list(new.values()), folder)
            waiting |= {(submission, place): job for place, job in enumerate(new.values())}
            arrays.add(array)
            logger.info("%d runs are array job %s, at most %d at once.", len(new), array, self.at_once)
        try:
            self._wait_for(waiting, folder, on_running, on_end)
        except (KeyboardInterrupt, Stopped):
            logger.warning(
                "The runs go on in Slurm. The same command waits for them again; this cancels them: scancel %s",
                " ".join(sorted(arrays)),
            )
            raise

    def _submit(self, jobs: Sequence[Job], folder: Path) -> tuple[str, str]:
        """Name and number of the new array job.

        Raises:
            UserError: Slurm refuses it.
        """
        import submitit
        from submitit.core.utils import FailedJobError

        name = f"fedbias-{secrets.token_hex(4)}"
        own = folder / name
        write_json_atomic(own / "tasks.json", [job.name for job in jobs])
        tasks = [Task(job, own / f"end_{place}.json") for place, job in enumerate(jobs)]
        try:
            executor = submitit.SlurmExecutor(own, max_num_timeout=MOST_TIME_LIMITS)
            executor.update_parameters(job_name=name, **self._parameters())
            with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what the error says again
                submitted = executor.submit_array(tasks)
        except FailedJobError as error:
            shutil.rmtree(own)
            raise UserError(f"Slurm refuses the runs: {error}") from error
        return name, submitted[0].job_id.split("_")[0]

    def _parameters(self) -> dict[str, Any]:
        """As submitit's SlurmExecutor names them."""
        parameters = {
            "partition": self.slurm_partition,
            "gpus_per_node": self.slurm_gpus or None,
            "mem": self.slurm_memory and f"{self.slurm_memory}G",
            "time": self.slurm_time,
            "cpus_per_task": self.slurm_cpus,
            "ntasks_per_node": 1,
            # srun takes the second from sbatch no more, since Slurm 22.05; a node of its own would get a task each CPU
            "srun_args": ["--ntasks=1", f"--cpus-per-task={self.slurm_cpus}"],
            "array_parallelism": self.at_once,
            # what the last step before the time limit, and its checkpoint, get
            "signal_delay_s": min(300, self.slurm_time * 60 // 3),
            "setup": [self.slurm_setup] if self.slurm_setup else [],
            "additional_parameters": {"requeue": True, **{name: value or True for name, value in self.extra.items()}},
        }
        return {name: value for name, value in parameters.items() if value is not None}

    def _wait_for(self, waiting: dict[Place, Job], folder: Path, on_running: OnRunning, on_end: OnEnd) -> None:
        """Call ``on_end`` for each of ``waiting``, which is empty at the end."""
        ended_since: dict[Place, float] = {}
        shown, is_silent = "", False
        with StopSignals("this command waits no longer") as stop:
            while waiting:
                pause = time.monotonic() + self.poll_seconds
                while time.monotonic() < pause:
                    stop.check()
                    time.sleep(0.2)
                try:
                    queue = _queue({name for name, _ in waiting})
                except UserError as error:
                    if not is_silent:
                        logger.warning("%s It is asked again.", error)
                    is_silent = True
                    continue
                is_silent = False
                for place in list(waiting):
                    end = _end_of(place, queue.get(place), folder, ended_since)
                    if end is not None:
                        on_end(waiting.pop(place), end)
                on_running(
                    [job for place, job in waiting.items() if place in queue and queue[place].state == "RUNNING"]
                )
                now = _summary(queue[place] for place in waiting if place in queue)
                if now not in ("", shown):
                    shown = now
                    logger.info("Slurm: %s.", now)


@dataclass(frozen=True)
class _Entry:
    """A task in Slurm's queue: the number of its array job, its state and why it waits."""

    array: str
    state: str
    reason: str


def _check_installed() -> None:
    for program in ("sbatch", "squeue", "srun"):
        if shutil.which(program) is None:
            raise UserError(
                f"--launcher slurm needs {program}, which is not on PATH: run it on a login node of a Slurm cluster, "
                "or use --launcher local."
            )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(f"--launcher slurm needs submitit ({error}): pip install submitit") from error


def _queue(submissions: Iterable[str]) -> dict[Place, _Entry]:
    """What Slurm knows of the tasks of ``submissions``; it forgets a task some minutes after its end.

    Raises:
        UserError: it does not answer.
    """
    names = ",".join(submissions)
    if not names:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={names}", "--format=%j|%K|%F|%T|%r"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {done.stderr.strip()}")
    rows = (line.strip().split("|", 4) for line in done.stdout.splitlines() if line.strip())
    return {  # an array of one is no array, and its only task has no number
        (name, int(place) if place.isdecimal() else 0): _Entry(array, state, reason)
        for name, place, array, state, reason in rows
    }


def _end_of(place: Place, entry: _Entry | None, folder: Path, ended_since: dict[Place, float]) -> int | str | None:
    """How a task has ended; None while it has not, or while its last file may still come.

    A task that Slurm does not list has ended some minutes ago.
    """
    if entry is not None and entry.state not in ENDED:
        ended_since.pop(place, None)
        return None
    if entry is not None and ENDED[entry.state] is not None:
        return ENDED[entry.state]
    own = folder / place[0]
    end = read_end(own / f"end_{place[1]}.json")
    if end is None and time.monotonic() - ended_since.setdefault(place, time.monotonic()) > PATIENCE:
        return f"ended without an exit code (Slurm: {entry.state.lower() if entry else 'unknown'}); see {own}"
    return end


def _summary(entries: Iterable[_Entry]) -> str:
    """``2 running, 3 pending (Resources)``, the longest first."""
    counts = Counter(
        entry.state.lower() + (f" ({entry.reason})" if entry.state == "PENDING" else "")
        for entry in entries
        if entry.state not in ENDED
    )
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())
