"""The warm process of a node: it keeps model and rows between messages, since Flower starts a process for each.

A ClientApp hands its message to the worker of its run through a socket (:func:`ask`), which starts it where it is
missing. It ends with the process that starts the node's ClientApps, when the run says goodbye, when a newer run takes
its place, or when nobody has asked for an hour.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.flower.wire import Parcel, receive, send

IDLE, STARTING = 3600.0, 600.0
"""Seconds without a message until a worker ends; seconds that one may take to start."""
OLD = 7 * 24 * 3600.0
"""Seconds after which the log of a worker that did not end by itself is deleted."""
USER_ERROR, FAULT = "user error", "fault"
HELD_FROM = 64 * 2**20
"""Bytes of an update that does not travel with the answer: it waits here until the server collects it."""
HELD = "held"
"""In an answer whose update waits."""


def ask(request: Parcel, node_id: int, run_id: int) -> Parcel:
    """The worker's answer to ``request``; one that has died is started again, once.

    Raises:
        UserError: the worker cannot be started; the end of its log is shown.
    """
    folder = workers_folder()
    place = folder / f"{hashlib.sha256(f'{node_id} {run_id}'.encode()).hexdigest()[:16]}.socket"
    for attempt in (1, 2):
        connection = _connected(place) or _started(place, node_id)
        try:
            with connection:
                send(request, connection.sendall)
                return receive(connection.recv)
        except (OSError, EOFError):
            if attempt == 2:
                break
    raise UserError(f"The worker of this node died twice over one message. Its log ends: {_log_end(place)}")


def workers_folder() -> Path:
    """Where sockets and logs of this user's workers lie; nobody else may enter."""
    folder = Path(tempfile.gettempdir()) / f"fedbias-flower-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UserError(f"{folder} is open to other users; delete it, or set TMPDIR to a folder of your own.")
    return folder


def _connected(place: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place))
    except OSError:
        connection.close()
        return None
    return connection


def _started(place: Path, node_id: int) -> socket.socket:
    """Start a worker and connect to it; a worker of this node for another run ends first."""
    with open(place.with_suffix(".lock"), "w") as lock:  # a node may be asked twice at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _connected(place) or _new(place, node_id)


def _new(place: Path, node_id: int) -> socket.socket:
    for old in place.parent.glob("*.log"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > OLD:
                old.unlink()
    for other in place.parent.glob("*.json"):
        with suppress(OSError, ValueError):
            known = json.loads(other.read_text())
            if known["node_id"] == node_id and other.stem != place.stem:
                end(other.with_suffix(".socket"))
    with open(place.with_suffix(".log"), "wb") as log:
        command = [sys.executable, "-m", "fedbias_plugin.hosts.flower.worker", str(place), str(_starter())]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    place.with_suffix(".json").write_text(json.dumps({"node_id": node_id, "pid": process.pid}))
    limit = time.monotonic() + STARTING
    while time.monotonic() < limit and process.poll() is None:
        connection = _connected(place)
        if connection is not None:
            return connection
        time.sleep(0.05)
    raise UserError(f"The worker of this node cannot be started. Its log ends: {_log_end(place)}")


def _starter() -> int:
    """The process that starts the ClientApps of this node; Flower names it where it need not be this one's parent."""
    words = sys.argv
    return int(words[words.index("--parent-pid") + 1]) if "--parent-pid" in words[:-1] else os.getppid()


def end(place: Path) -> None:
    """Ask the worker behind a socket to end, if there is one."""
    connection = _connected(place)
    if connection is not None:
        with connection, suppress(OSError, EOFError):
            send(Parcel({"ask": "end"}), connection.sendall)
            receive(connection.recv)


def _log_end(place: Path) -> str:
    with suppress(OSError):
        return place.with_suffix(".log").read_text(errors="replace")[-2000:]
    return "(none)"


class Worker:
    """Serves one node of one run, a message at a time."""

    def __init__(self) -> None:
        self._node: Any = None
        self._made_of: Any = None
        self._held: dict[int, Parcel] = {}

    def answer(self, request: Parcel) -> Parcel:
        """The node's answer; an error travels as one, with its kind."""
        about = request.meta
        try:
            if about["ask"] == "end":
                return Parcel({})
            if about["ask"] == "collect":
                return self._held.pop(about["client"], None) or Parcel({"error": "nothing waits there", "kind": FAULT})
            made_of = (about["flags"], about["node_config"])
            if self._made_of != made_of:
                from fedbias_plugin.hosts.flower.node import Node

                self._node = self._made_of = None
                self._node, self._made_of = Node(*made_of), made_of
            return self._fitted(request) if about["ask"] == "fit" else self._node.describe()
        except UserError as error:
            return Parcel({"error": str(error), "kind": USER_ERROR})
        except Exception as error:
            import traceback

            traceback.print_exc()
            return Parcel({"error": f"{type(error).__name__}: {error}", "kind": FAULT})

    def _fitted(self, request: Parcel) -> Parcel:
        answer = self._node.fit(request)
        if answer.payload < HELD_FROM:
            return answer
        self._held[answer.meta["client"]] = answer
        return Parcel({HELD: True})


def main(place: Path, parent: int) -> None:
    """Serve until the parent process is gone, nobody has asked for :data:`IDLE` seconds, or somebody says ``end``."""
    from fedbias_plugin.logs import log_to_stderr, quiet_libraries

    log_to_stderr()
    quiet_libraries()
    threading.Thread(target=_end_with, args=(parent, place), daemon=True).start()
    place.unlink(missing_ok=True)
    worker = Worker()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(place))
        server.listen()
        server.settimeout(IDLE)
        try:
            while True:
                connection, _ = server.accept()
                with connection, suppress(OSError, EOFError):
                    connection.settimeout(None)
                    request = receive(connection.recv)
                    send(worker.answer(request), connection.sendall)
                    if request.meta["ask"] == "end":
                        place.with_suffix(".log").unlink(missing_ok=True)
                        break
        except TimeoutError:
            pass
        finally:
            _forget(place)


def _end_with(parent: int, place: Path) -> None:
    while _is_running(parent):
        time.sleep(1)
    _forget(place)
    os._exit(0)


def _is_running(pid: int) -> bool:
    """Whether there is such a process; one that nobody has reaped yet has ended all the same."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _forget(place: Path) -> None:
    for ending in (".socket", ".json", ".lock"):
        place.with_suffix(ending).unlink(missing_ok=True)


def asked(ask_for: str, flags: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The facts of a request: what is asked for, the run's flags, and what belongs to it."""
    return {"ask": ask_for, "flags": dict(flags), **more}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
