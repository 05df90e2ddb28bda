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
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from fedbias_plugin.errors import Stopped, UserError, quoted
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.sweep.jobs import Job
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


@dataclass(frozen=True)
class SlurmOptions:
    """What each run asks Slurm for.

    Attributes:
        partition: its name; None for the cluster's default.
        time_minutes: the limit of one attempt; a run that meets it is requeued and goes on.
        gpus: of one run; 0 for none.
        cpus: of one run.
        memory_gib: of one run, main memory; None for the cluster's default.
        max_parallel: runs at once.
        extra: further parameters of sbatch, long names without ``--``; an empty value for one that takes none.
        setup: shell commands before each run, such as ``module load cuda``.

    Raises:
        UserError: a number that is too small, or a parameter that is set elsewhere or has no such name.
    """

    partition: str | None = None
    time_minutes: int = 240
    gpus: int = 1
    cpus: int = 4
    memory_gib: int | None = None
    max_parallel: int = 8
    extra: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        smallest = {"time_minutes": 1, "gpus": 0, "cpus": 1, "memory_gib": 1, "max_parallel": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"slurm {name} is {value}; it must be at least {least}.")
        for name, value in self.extra.items():
            if not re.fullmatch(r"[a-z][a-z0-9-]*", name) or "\n" in value:
                raise UserError(f"slurm parameter {quoted(name)}: give sbatch's long name without --, as account: NAME")
            if name in OWN_PARAMETERS:
                raise UserError(f"slurm parameter {name}: {OWN_PARAMETERS[name]}.")


def run_on_slurm(
    jobs: Sequence[Job],
    options: SlurmOptions,
    folder: Path,
    on_end: Callable[[Job, int | str], None],
    *,
    poll_seconds: float = 10.0,
) -> None:
    """Submit ``jobs`` as one array, and wait for the end of each; those that are in the queue already are waited for.

    A task that is preempted, requeued or out of time runs its command again. When this process is stopped, the tasks
    go on; they are cancelled with ``scancel``.

    Args:
        jobs: names are unique. Their commands run on other machines: all paths are on a disk that these share.
        options: what each asks for.
        folder: of the sweep.
        on_end: called once for each job, as it ends, with its exit code or ``cancelled``, ``timed out``,
            ``node failed``, ``out of memory`` or another reason.
        poll_seconds: between two questions to Slurm.

    Raises:
        UserError: there is no Slurm, or no submitit, or Slurm refuses the array; nothing is submitted then.
        Stopped: SIGTERM came.
    """
    _check_installed()
    folder = folder.resolve() / "slurm"
    if "%" in str(folder):
        raise UserError(f"The folder {folder} has a % in its name, which Slurm would replace; give another one.")
    queue = _queue(_submissions(folder))
    waiting = _already_there(jobs, folder, queue)
    arrays = {queue[place].array for place in waiting}
    if waiting:
        logger.info("%d runs are in Slurm's queue already, and are waited for.", len(waiting))
    names = {job.name for job in waiting.values()}
    if new := [job for job in jobs if job.name not in names]:
        name, array = _submit(new, options, folder)
        waiting.update({(name, place): job for place, job in enumerate(new)})
        arrays.add(array)
        logger.info("%d runs are array job %s, at most %d at once.", len(new), array, options.max_parallel)
    try:
        with _sigterm_stops():
            _wait_for(waiting, folder, on_end, poll_seconds)
    except (KeyboardInterrupt, Stopped):
        logger.warning(
            "The runs go on in Slurm. The same command waits for them again; this cancels them: scancel %s",
            " ".join(sorted(arrays)),
        )
        raise


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


def _submissions(folder: Path) -> dict[str, list[str]]:
    """Name of every submission so far -> the names of its runs."""
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/tasks.json"))
    }


def _queue(submissions: Mapping[str, Any]) -> dict[Place, _Entry]:
    """What Slurm knows of the tasks of ``submissions``; it forgets a task some minutes after its end.

    Raises:
        UserError: it does not answer.
    """
    if not submissions:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", f"--name={','.join(submissions)}"]
    done = subprocess.run([*command, "--format=%j|%K|%F|%T|%r"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"Slurm does not answer: {done.stderr.strip()}")
    rows = (line.strip().split("|", 4) for line in done.stdout.splitlines() if line.strip())
    return {  # an array of one is no array, and its only task has no number
        (name, int(place) if place.isdecimal() else 0): _Entry(array, state, reason)
        for name, place, array, state, reason in rows
    }


def _already_there(jobs: Sequence[Job], folder: Path, queue: Mapping[Place, _Entry]) -> dict[Place, Job]:
    """Those of ``jobs`` that wait or run in Slurm."""
    wanted = {job.name: job for job in jobs}
    return {
        (name, place): wanted[run]
        for name, runs in _submissions(folder).items()
        for place, run in enumerate(runs)
        if run in wanted and (name, place) in queue and queue[name, place].state not in ENDED
    }


def _submit(jobs: Sequence[Job], options: SlurmOptions, folder: Path) -> tuple[str, str]:
    """Name and number of the new array job.

    Raises:
        UserError: Slurm refuses it.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    name = f"fedbias-{secrets.token_hex(4)}"
    own = folder / name
    write_json_atomic(own / "tasks.json", [job.name for job in jobs])
    try:
        executor = submitit.SlurmExecutor(own, max_num_timeout=MOST_TIME_LIMITS)
        executor.update_parameters(job_name=name, **_parameters(options))
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints there what the error says again
            submitted = executor.submit_array([Task(job, _end_file(own, place)) for place, job in enumerate(jobs)])
    except FailedJobError as error:
        shutil.rmtree(own)
        raise UserError(f"Slurm refuses the runs: {error}") from error
    return name, submitted[0].job_id.split("_")[0]


def _parameters(options: SlurmOptions) -> dict[str, Any]:
    """As submitit's SlurmExecutor names them."""
    seconds = options.time_minutes * 60
    parameters: dict[str, Any] = {
        "time": options.time_minutes,
        "cpus_per_task": options.cpus,
        "ntasks_per_node": 1,
        # srun takes the second from sbatch no more, since Slurm 22.05; a node of its own would get a task each CPU
        "srun_args": ["--ntasks=1", f"--cpus-per-task={options.cpus}"],
        "array_parallelism": options.max_parallel,
        "signal_delay_s": min(300, seconds // 3),  # what the last step before the time limit, and its checkpoint, get
        "setup": list(options.setup),
        "additional_parameters": {"requeue": True, **{name: value or True for name, value in options.extra.items()}},
    }
    if options.partition is not None:
        parameters["partition"] = options.partition
    if options.gpus:
        parameters["gpus_per_node"] = options.gpus
    if options.memory_gib is not None:
        parameters["mem"] = f"{options.memory_gib}G"
    return parameters


def _end_file(own: Path, place: int) -> Path:
    return own / f"end_{place}.json"


def _wait_for(
    waiting: dict[Place, Job], folder: Path, on_end: Callable[[Job, int | str], None], poll_seconds: float
) -> None:
    """Call ``on_end`` for each of ``waiting``, which is empty at the end."""
    ended_since: dict[Place, float] = {}
    shown, silent = "", False
    while waiting:
        time.sleep(poll_seconds)
        try:
            queue = _queue(dict.fromkeys(name for name, _ in waiting))
        except UserError as error:
            if not silent:
                logger.warning("%s It is asked again.", error)
            silent = True
            continue
        silent = False
        for place in list(waiting):
            end = _end_of(place, queue.get(place), folder, ended_since)
            if end is not None:
                on_end(waiting.pop(place), end)
        if (now := _summary(queue[place] for place in waiting if place in queue)) not in ("", shown):
            shown = now
            logger.info("Slurm: %s.", now)


def _end_of(place: Place, entry: _Entry | None, folder: Path, ended_since: dict[Place, float]) -> int | str | None:
    """How a task has ended; None while it has not, or while its last file may still come.

    A task that Slurm does not list has ended some minutes ago.
    """
    if entry is not None and entry.state not in ENDED:
        ended_since.pop(place, None)
        return None
    reason = ENDED[entry.state] if entry is not None else None
    if reason is not None:
        return reason
    name, number = place
    end = read_end(_end_file(folder / name, number))
    first = ended_since.setdefault(place, time.monotonic())
    late = time.monotonic() - first > PATIENCE
    if end is None and late:
        return f"ended without an exit code (Slurm: {entry.state.lower() if entry else 'unknown'}); see {folder / name}"
    return end


def _summary(entries: Iterator[_Entry]) -> str:
    """``2 running, 3 pending (Resources)``, the longest first."""
    counts = Counter(
        entry.state.lower() + (f" ({entry.reason})" if entry.state == "PENDING" else "")
        for entry in entries
        if entry.state not in ENDED
    )
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Within the block, SIGTERM raises :class:`Stopped`, unless somebody listens to it already."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
