"""What runs on the compute node, without a Slurm: its signals are sent by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from fedbias_plugin.sweep.base import Job
from fedbias_plugin.sweep.slurm_task import Task, read_end

STOPPABLE = """
import signal, sys, time
def stop(number, frame):
    print("stopped", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def python_job(folder, code):
    return Job("job", (sys.executable, "-c", code), {"WORD": "given"}, folder / "logs" / "job.log")


def wait_for(condition):
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("not within 30 seconds")


def test_a_command_ignores_the_signal_that_is_meant_for_submitit(tmp_path):
    """As on clusters that signal every process of a job; ``checkpoint`` then stops the command by SIGTERM."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print(os.environ['WORD'])"
    job, end = python_job(tmp_path, code), tmp_path / "end.json"
    Task(job, end)()
    assert job.log.read_text() == "given\n"
    assert read_end(end) == 0
    assert not {signal.SIGUSR1, signal.SIGUSR2} & signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("code", "exit_code"), [("raise SystemExit(3)", 3), ("import os; os.abort()", 128 + 6)])
def test_a_failed_command_gives_its_exit_code_to_slurm_and_to_the_sweep(tmp_path, code, exit_code):
    with pytest.raises(SystemExit) as caught:
        Task(python_job(tmp_path, code), tmp_path / "end.json")()
    assert caught.value.code == exit_code
    assert json.loads((tmp_path / "end.json").read_text()) == exit_code


def test_the_end_of_an_earlier_attempt_is_forgotten_when_the_next_begins(tmp_path):
    end = tmp_path / "end.json"
    end.write_text("143")
    code = f"import pathlib; print(pathlib.Path({str(end)!r}).exists())"
    Task(python_job(tmp_path, code), end)()
    assert (tmp_path / "logs" / "job.log").read_text() == "False\n"


def test_a_stopped_task_stops_its_command_and_stays_until_slurm_kills_it(tmp_path):
    """SIGTERM goes to the task alone, as on clusters that track processes by cgroups."""
    job, end = python_job(tmp_path, STOPPABLE), tmp_path / "end.json"
    code = (
        "import sys, pathlib; from fedbias_plugin.sweep.base import Job\n"
        "from fedbias_plugin.sweep.slurm_task import Task; folder = pathlib.Path(sys.argv[1])\n"
        "Task(Job('job', (sys.executable, '-c', sys.argv[2]), {}, folder / 'logs/job.log'), folder / 'end.json')()"
    )
    task = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), STOPPABLE])
    try:
        wait_for(lambda: job.log.exists() and job.log.read_text() == "begun\n")
        task.terminate()
        wait_for(lambda: read_end(end) == 143)
        assert job.log.read_text() == "begun\nstopped\n"
        with pytest.raises(subprocess.TimeoutExpired):
            task.wait(0.5)
    finally:
        task.kill()
        task.wait()
