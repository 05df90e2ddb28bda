"""Flower's processes as the embedded federation starts them: they end with it, and lose no seconds between messages.

``python -m fedbias_plugin.hosts.flower.embedded_process KIND ARGUMENTS`` is, by KIND:

- ``superlink``, ``supernode``: Flower's own; what a SuperLink starts stays in its session, and a SuperNode looks for
  messages every :data:`POLL` seconds instead of every three.
- ``clientapps SOCKET``: starts ClientApps as forks of a process that has Flower loaded (two seconds of imports each
  otherwise), for the :func:`stand_in` of ``flwr-clientapp`` that stands first on a SuperNode's path.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from fedbias_plugin.hosts.flower.wire import exactly

POLL = 0.5
"""Seconds."""
MODULE = "fedbias_plugin.hosts.flower.embedded_process"
STAND_IN = """\
#!{python} -IS
import json, os, socket, struct, sys
connection = socket.socket(socket.AF_UNIX)
try:
    connection.connect({place!r})
except OSError:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])
call = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [struct.pack("<Q", len(call))], [0, 1, 2])
connection.sendall(call)
sys.exit(int(connection.recv(16) or b"1"))
"""


def stand_in(folder: Path, place: Path, real: str) -> None:
    """Write a ``flwr-clientapp`` to ``folder`` that asks the process behind the socket ``place``, else is ``real``."""
    folder.mkdir(exist_ok=True)
    path = folder / "flwr-clientapp"
    path.write_text(STAND_IN.format(python=sys.executable, place=str(place), real=real))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def serve_clientapps(place: str) -> None:
    """Fork a ClientApp for every call, and tell each caller how its own ended; no thread may run here."""
    from flwr.supernode.cli import flwr_clientapp

    parent = os.getppid()
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as server:
        Path(place).unlink(missing_ok=True)  # of one that was killed
        server.bind(place)
        server.listen()
        server.settimeout(0.05)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                connection, _ = server.accept()
                head, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
                arguments, environment, folder = json.loads(exactly(connection.recv, struct.unpack("<Q", head)[0]))
                child = os.fork()
                if child == 0:
                    server.close()
                    for number, descriptor in enumerate(descriptors):
                        os.dup2(descriptor, number)
                    os.environ.clear()
                    os.environ.update(environment)
                    os.chdir(folder)
                    sys.argv = ["flwr-clientapp", *arguments]
                    _end_as(flwr_clientapp)
                for descriptor in descriptors:
                    os.close(descriptor)
                running[child] = connection
            for child in list(running):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    with suppress(OSError), running.pop(child) as connection:
                        connection.sendall(str(abs(os.waitstatus_to_exitcode(status))).encode())
    os.killpg(os.getpgid(0), signal.SIGKILL)  # the forks, too, which ask a SuperNode that has gone again and again


def _end_as(function: Callable[[], object]) -> None:
    """Run ``function`` as the whole of this forked process."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        group = os.getpgid(0)  # with the ServerApp, which asks a SuperLink that has gone again and again
        subprocess.Popen(["sh", "-c", f"sleep 10; kill -9 -{group}"], start_new_session=True)
        os.killpg(group, signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def main(kind: str, arguments: list[str]) -> None:
    """Be one of Flower's processes."""
    if kind == "clientapps":
        serve_clientapps(arguments[0])
        return
    _end_with_parent()
    sys.argv = [f"flower-{kind}", *arguments]
    if kind == "supernode":
        loop = importlib.import_module("flwr.supernode.start_client_internal")
        loop.time = SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, POLL)))  # type: ignore[attr-defined]
        from flwr.supernode.cli import flower_supernode

        flower_supernode()
        return
    link = importlib.import_module("flwr.superlink.cli.flower_superlink")
    link.get_popen_detach_kwargs = dict  # type: ignore[attr-defined]  # the ServerApp gets the signals of this session
    link.flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
