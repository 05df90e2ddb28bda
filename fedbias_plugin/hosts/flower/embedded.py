"""A Flower federation on this machine: one SuperLink and some SuperNodes on loopback, for the length of a run."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.flower.embedded_process import MODULE, stand_in

logger = logging.getLogger(__name__)

NAME = "embedded"
"""Of the connection in Flower's configuration."""
PATIENCE = 60.0
"""Seconds that a process may take to listen."""
SUPERLINK = "superlink"
SHORT, RESTARTS = 30.0, 3
"""What lived for less than so many seconds, so often in a row, is not started again."""
GRACE = 10.0
"""Seconds from SIGTERM to SIGKILL."""


class EmbeddedFederation:
    """Starts the processes on entry and ends all of them on exit, whatever happens in between.

    Args:
        supernodes: how many; client i is on the node that i leaves when divided by this.
        gpus: number of GPUs; node i gets the i-th, in turns.

    Attributes:
        environment: of a command that talks to this federation.
        folder: of logs and of Flower's files; deleted on exit.
    """

    def __init__(self, supernodes: int, gpus: int = 0) -> None:
        self._count, self._gpus = supernodes, gpus
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._again: dict[str, tuple[Sequence[str], Mapping[str, str] | None, float, int]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="fedbias-flower-"))
        self.environment = flower_environment(self.folder / "home")

    def __enter__(self) -> EmbeddedFederation:
        try:
            apps = self.folder / "clientapps.socket"
            stand_in(self.folder / "bin", apps, shutil.which("flwr-clientapp", path=self.environment["PATH"]) or "")
            self._start("clientapps", [str(apps)])
            port, *ports = free_ports(1 + self._count)
            link = ["--insecure", "--host", "127.0.0.1", "--port", str(port)]
            self._start(SUPERLINK, [*link, "--disable-runtime-dependency-installation"])
            self._wait_for(SUPERLINK, port)
            write_connection(self.folder / "home", NAME, f"127.0.0.1:{port}")
            for index, own in enumerate(ports):
                node = ["--insecure", "--superlink", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(own)]
                node += ["--node-config", f"partition-id={index} num-partitions={self._count}"]
                more = {"PATH": os.pathsep.join([str(self.folder / "bin"), self.environment["PATH"]])}
                if self._gpus > 1:
                    more["CUDA_VISIBLE_DEVICES"] = visible_gpu(index, self._gpus)
                self._start(f"supernode {index}", node, more)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_groups(list(self._processes.values()))
        for name, process in self._processes.items():
            logger.debug("%s ended with %s", name, process.returncode)
        self._processes.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def attend(self) -> None:
        """Start again what has ended; the SuperLink takes such a SuperNode for a new one, with the same clients.

        Raises:
            UserError: the SuperLink has ended, or another soon after every start; the end of its log is shown.
        """
        for name, process in list(self._processes.items()):
            if process.poll() is None:
                continue
            arguments, more, since, failures = self._again[name]
            failures = failures + 1 if time.monotonic() - since < SHORT else 1
            if name == SUPERLINK or failures > RESTARTS:
                raise UserError(f"Flower's {name} ended with {process.returncode}. Its log ends:\n{self.log_end(name)}")
            logger.warning("Flower's %s ended with %s and is started again", name, process.returncode)
            end_groups([process])  # what it had started
            self._start(name, arguments, more, failures)

    def log_end(self, name: str) -> str:
        """The last lines that a process has written."""
        with suppress(OSError):
            return "\n".join((self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
        return ""

    def _start(
        self, name: str, arguments: Sequence[str], more: Mapping[str, str] | None = None, failures: int = 0
    ) -> None:
        command = [sys.executable, "-m", MODULE, name.split()[0], *arguments]
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                env={**self.environment, **(more or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which ends the others
            )
        self._processes[name], self._again[name] = process, (arguments, more, time.monotonic(), failures)

    def _wait_for(self, name: str, port: int) -> None:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            self.attend()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.1)
        raise UserError(f"Flower's {name} did not listen within {PATIENCE:g} seconds:\n{self.log_end(name)}")


def flower_environment(home: Path | None = None) -> dict[str, str]:
    """The environment of Flower's commands: this Python's programs first, no telemetry, bytecode kept."""
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), environment.get("PATH", "")])
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # every message starts a process
    environment.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.5")
    if home is not None:
        environment["FLWR_HOME"] = str(home)
    return environment


def write_connection(home: Path, name: str, address: str) -> None:
    """Flower's configuration with one connection, without TLS."""
    home.mkdir(parents=True, exist_ok=True)
    text = f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(text)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def visible_gpu(index: int, gpus: int) -> str:
    """The GPU of node ``index``, as ``CUDA_VISIBLE_DEVICES`` has it."""
    named = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    return (named or [str(gpu) for gpu in range(gpus)])[index % gpus]


def end_groups(leaders: Sequence[subprocess.Popen[Any]]) -> None:
    """End the sessions of ``leaders``, and wait for it: kindly, and what is left after :data:`GRACE` for good."""
    limit = time.monotonic() + GRACE
    left, number = list(leaders), int(signal.SIGTERM)
    while left:
        left = [leader for leader in left if _signalled(leader.pid, number)]
        for leader in leaders:
            leader.poll()
        number = int(signal.SIGKILL) if time.monotonic() > limit else 0
        if time.monotonic() > limit + GRACE:  # a process 1 that reaps nothing
            return
        time.sleep(0.05)


def _signalled(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter of a group of zombies, on some systems
        return False
    return True
