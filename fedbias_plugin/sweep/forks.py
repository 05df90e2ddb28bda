"""Runs as forks of one process that has loaded the libraries, which is most of the work of a small run.

That process is the fork server of :mod:`multiprocessing`. It starts no thread and touches no GPU; it has the
environment of the first run, so that libraries read the same number of threads as in a process of a run's own.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import random
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from types import ModuleType

from fedbias_plugin.errors import first_line
from fedbias_plugin.sweep.base import Job

logger = logging.getLogger(__name__)

LOADED = ["fedbias_plugin.hosts.builtin.loop", "fedbias_plugin.cli.main"]


def fork(job: Job, environment: Mapping[str, str]) -> BaseProcess | None:
    """Start ``job`` in a fork; the first one waits for the libraries.

    Args:
        job: whose log's folder is there.
        environment: the whole of it.

    Returns:
        None where it needs a process of its own: no Linux, another command than ``python -m MODULE``, or no server, as
        it was killed or has no room for its socket.
    """
    python, module = (sys.executable, "-m"), job.command[2:]
    if sys.platform != "linux" or job.command[:2] != python or not module:
        return None
    process = multiprocessing.get_context("forkserver").Process(
        target=_run, args=(module, dict(environment), os.fspath(job.log)), name=job.name
    )
    before, main = dict(os.environ), sys.modules["__main__"]
    _set_environment(environment)
    sys.modules["__main__"] = ModuleType("__main__")  # a script that begins a sweep would begin it again in the fork
    try:
        forkserver.set_forkserver_preload(LOADED)
        forkserver.ensure_running()
        _set_environment(before)
        process.start()
    except (EOFError, OSError) as error:
        logger.warning("%s gets a process of its own: %s", job.name, first_line(error))
        return None
    finally:
        _set_environment(before)
        sys.modules["__main__"] = main
    return process


def _run(module: Sequence[str], environment: Mapping[str, str], log: str) -> None:
    """In the fork: as ``python -m`` would in a process of its own."""
    os.setsid()  # Ctrl-C comes from the sweep, once
    threading.Thread(target=_end_with_sweep, daemon=True).start()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)
    _set_environment(environment)
    _begin_libraries(environment.get("OMP_NUM_THREADS", ""))
    atexit._clear()  # of the server
    sys.argv = [*module]
    try:
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out before Python 3.14


def _end_with_sweep() -> None:
    """Ask this process to stop when the sweep is gone: killed, not asked to stop. The server stays while forks do."""
    sweep = multiprocessing.parent_process()
    if sweep is not None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _begin_libraries(threads: str) -> None:
    """What libraries do when they are loaded, and not again in a fork."""
    import numpy
    import torch

    random.seed()
    numpy.random.seed()
    if threads.isdecimal() and int(threads) not in (0, torch.get_num_threads()):  # a second sweep of one process
        torch.set_num_threads(int(threads))


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)
