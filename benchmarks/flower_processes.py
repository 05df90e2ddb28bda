"""The processes of a ``fedbias flower run`` on this machine, to be looked at and killed; for Linux."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

KINDS = ("superlink", "supernode", "superexec", "serverapp", "clientapps", "clientapp", "stand-in", "worker")
MARK = "FEDBIAS_FLOWER_RUN_MARK"


class FlowerRun:
    """One ``fedbias flower run`` with everything that it starts, known by a mark in their environments.

    Args:
        flags: of the command.
        log: takes what it writes; appended to.
        threads: of each process's arithmetic.
    """

    def __init__(self, flags: list[str], log: Path, threads: int = 1) -> None:
        self.mark, self.log = uuid.uuid4().hex, log
        environment = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-m", "fedbias_plugin", "flower", "run", *flags]
        with open(log, "ab") as stream:
            self.process = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def living(self, kind: str | None = None) -> list[psutil.Process]:
        """Its processes beside the command itself that have not ended, of one of :data:`KINDS` or all, oldest first."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == self.process.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(MARK) == self.mark and kind in (None, kind_of(process)):
                    found.append((process.create_time(), process.pid, process))
        return [process for _, _, process in sorted(found)]

    def wait(self, seconds: float = 600.0) -> int:
        """The exit code of the command.

        Raises:
            subprocess.TimeoutExpired: it did not end.
        """
        return self.process.wait(seconds)

    def end(self) -> None:
        """Kill the command and all that is left of it."""
        for process in [psutil.Process(self.process.pid)] if self.process.poll() is None else []:
            process.kill()
        self.process.wait()
        for process in self.living():
            with suppress(psutil.Error):
                process.kill()


def kind_of(process: psutil.Process) -> str:
    """One of :data:`KINDS`, or the name of the program; ``clientapps`` is the process whose forks ClientApps are."""
    words = process.cmdline()
    if "fedbias_plugin.hosts.flower.embedded_process" in words:
        kind = words[words.index("fedbias_plugin.hosts.flower.embedded_process") + 1]
        parent = process.parent()
        return "clientapp" if kind == "clientapps" and parent and parent.cmdline() == words else kind
    if "fedbias_plugin.hosts.flower.worker" in words:
        return "worker"
    if "-IS" in words:
        return "stand-in"
    line = " ".join(words)
    return next((kind for kind in KINDS if f"flower-{kind}" in line or f"flwr-{kind}" in line), process.name())


def wait_for(what: Callable[[], object], seconds: float = 300.0, pause: float = 0.02) -> bool:
    """Whether ``what`` became true within the time."""
    limit = time.monotonic() + seconds
    while not (found := bool(what())) and time.monotonic() < limit:
        time.sleep(pause)
    return found


def rounds_in(output: Path) -> int:
    """Records that a run has written, that of the untouched model among them."""
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bytes."""
    names = [path.relative_to(one) for path in one.rglob("*.safetensors") if "checkpoints" not in path.parts]
    return bool(names) and all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def kill(process: psutil.Process) -> bool:
    """SIGKILL; False where it had ended already."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True
