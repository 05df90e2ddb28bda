"""The contract of a launcher: where the runs of a sweep go (``--launcher NAME``)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedbias_plugin.extension import Extension
from fedbias_plugin.options import check_options, option


@dataclass(frozen=True)
class Job:
    """One run to be made.

    Attributes:
        name: of the run; unique in its sweep.
        command: the whole command line, to be run as a child process. Safe to run again after an interruption: it goes
            on from the last checkpoint, and does nothing where the run is finished.
        environment: additions to the environment.
        log: takes the output and the errors of the command, at its end.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path


OnRunning = Callable[[Sequence[Job]], None]
"""Takes the jobs that run now; also where they are those of the last call."""
OnEnd = Callable[[Job, int | str], None]
"""Takes a job that has ended, with its exit code or the reason of its end."""


@dataclass
class Launcher(Extension):
    """How runs are started.

    Attributes:
        runs_here: whether the runs are on this machine, so that it is checked before.

    Raises:
        UserError: a flag is out of range.
    """

    runs_here: ClassVar[bool] = False
    jobs: int | None = option(None, "runs at the same time (default: one a GPU, or 1; 16 on Slurm)", at_least=1)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    @abstractmethod
    def at_once(self) -> int:
        """How many runs go on at the same time.

        Raises:
            UserError: not as many as ``--jobs`` asks for can.
        """

    @abstractmethod
    def run(self, jobs: Sequence[Job], folder: Path, on_running: OnRunning, on_end: OnEnd) -> None:
        """Run every job to its end; one that fails stops no other.

        Args:
            jobs: in this order.
            folder: of the sweep.
            on_running: called with the jobs that run now, whenever these may have changed; they are shown.
            on_end: called once for each job, as it ends.

        Raises:
            UserError: no run can be started.
            Stopped: a signal asked this process to stop.
        """
