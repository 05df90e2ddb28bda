"""One run of a sweep, as the launchers see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


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
