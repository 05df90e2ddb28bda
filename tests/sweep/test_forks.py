"""Runs as forks of one process: they are what a process of their own would be, and none brings another down."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedbias_plugin.sweep import forks
from fedbias_plugin.sweep.base import Job
from fedbias_plugin.sweep.local import LocalLauncher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux")

PLAY = """
import atexit, os, random, sys, torch
atexit.register(lambda: print("at exit"))
what = sys.argv[1]
print(what, os.environ["OWN"], os.getpid() == os.getsid(0), sys.stdin.read() == "", flush=True)
print("loaded", "transformers" in sys.modules, "threads", torch.get_num_threads(), random.random(), flush=True)
if what == "killed":
    os.kill(os.getpid(), 9)
if what == "segfault":
    import ctypes
    ctypes.string_at(0)
if what == "left":
    os._exit(7)
if what == "error":
    raise ValueError("what went wrong")
if what == "text":
    sys.exit("said at the end")
sys.exit(3 if what == "three" else 0)
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """``play(*names)`` runs a module for each, two at a time -> ends by name."""
    (tmp_path / "play_of_forks.py").write_text(PLAY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    class OnCpu(LocalLauncher):
        def slots(self):
            return [{}, {}]

    def run(*names):
        command = (sys.executable, "-m", "play_of_forks")
        jobs = [Job(name, (*command, name), {"OWN": f"{name}'s"}, tmp_path / f"{name}.log") for name in names]
        ends, seen = {}, []
        OnCpu().run(
            jobs,
            tmp_path,
            lambda now: seen.append([job.name for job in now]),
            lambda job, end: ends.update({job.name: end}),
        )
        return ends, seen, {job.name: job.log.read_text() for job in jobs}

    return run


def test_a_run_that_crashes_leaves_the_others_alone_and_every_end_is_told(play):
    names = ["killed", "good", "segfault", "left", "error", "text", "three", "last"]
    ends, seen, said = play(*names)
    assert ends == {"killed": -9, "good": 0, "segfault": -11, "left": 7, "error": 1, "text": 1, "three": 3, "last": 0}
    assert max(map(len, seen)) == 2
    assert seen[-1] == []
    assert {name for now in seen for name in now} == set(names)
    assert "ValueError: what went wrong" in said["error"]
    assert set(said["text"].splitlines()[-2:]) == {"said at the end", "at exit"}


def test_a_fork_has_its_own_log_environment_session_and_random_numbers_and_the_libraries_loaded(play):
    _, _, said = play("one", "two")
    first, second = (said[name].splitlines() for name in ("one", "two"))
    assert first[0] == "one one's True True"
    assert second[0] == "two two's True True"
    assert first[1].startswith("loaded True threads 1 ")
    assert first[1] != second[1]
    assert first[2] == second[2] == "at exit"


def test_a_run_ends_when_the_sweep_that_began_it_is_killed(tmp_path):
    (tmp_path / "sleeps.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    (tmp_path / "sweeps.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom fedbias_plugin.sweep.local import LocalLauncher\n"
        "from fedbias_plugin.sweep.base import Job\nhere = Path(sys.argv[1])\nLocalLauncher.slots = lambda self: [{}]\n"
        "job = Job('one', (sys.executable, '-m', 'sleeps'), {}, here / 'log')\n"
        "LocalLauncher().run([job], here, print, print)\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    sweep = subprocess.Popen([sys.executable, tmp_path / "sweeps.py", tmp_path], env={**os.environ, "PYTHONPATH": path})
    try:
        until(lambda: (tmp_path / "log").is_file() and (tmp_path / "log").read_text().endswith("\n"))
    finally:
        sweep.kill()
        sweep.wait()
    run = Path("/proc", (tmp_path / "log").read_text().strip())
    until(lambda: not run.exists() or " Z " in (run / "stat").read_text())


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come so far"
        time.sleep(0.05)


def test_without_a_server_a_run_gets_a_process_of_its_own_and_that_is_said(tmp_path, monkeypatch, caplog):
    def refused():
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(forks.forkserver, "ensure_running", refused)
    job = Job("platform", (sys.executable, "-m", "platform"), {"ITS_OWN": "1"}, tmp_path / "platform.log")
    assert forks.fork(job, {**os.environ, **job.environment}) is None
    assert "platform gets a process of its own: AF_UNIX path too long" in caplog.text
    assert "ITS_OWN" not in os.environ


def test_what_is_no_python_module_gets_a_process_of_its_own(tmp_path):
    assert forks.fork(Job("x", (sys.executable, "-c", "pass"), {}, tmp_path / "x.log"), os.environ) is None


def test_a_run_on_a_gpu_is_not_forked(tmp_path, monkeypatch):
    def refused(job, environment):
        raise AssertionError("forked")

    class OnGpu(LocalLauncher):
        def slots(self):
            return [{"CUDA_VISIBLE_DEVICES": "0"}]

    monkeypatch.setattr("fedbias_plugin.sweep.local.fork", refused)
    job = Job("platform", (sys.executable, "-m", "platform"), {}, tmp_path / "platform.log")
    ends = []
    OnGpu().run([job], tmp_path, lambda now: None, lambda one, end: ends.append(end))
    assert ends == [0]
