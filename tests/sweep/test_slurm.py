"""Runs as a Slurm array: on a real Slurm, where ``sinfo`` answers (tests/slurm/start_one_node.sh starts one)."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.sweep.base import Job
from fedbias_plugin.sweep.slurm import SlurmLauncher

pytest.importorskip("submitit")


def slurm_answers() -> bool:
    return (
        shutil.which("sinfo") is not None and subprocess.run(["sinfo"], capture_output=True, timeout=60).returncode == 0
    )


on_slurm = pytest.mark.skipif(
    not slurm_answers(), reason="no Slurm answers; tests/slurm/start_one_node.sh --install starts one"
)
SlurmLauncher.poll_seconds = 0.5


def asking(**flags: object) -> SlurmLauncher:
    """A launcher of small runs, but for ``flags`` (``slurm_`` left out)."""
    given = {"gpus": 0, "cpus": 1, "time": 5, **flags}
    return SlurmLauncher(**{name if name == "jobs" else f"slurm_{name}": value for name, value in given.items()})


SMALL = asking()
LONG_AT_FIRST = """
import pathlib, signal, sys, time
def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm signals every process, and the task does too
    print("stopped", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
begun = pathlib.Path(sys.argv[1])
print("second" if begun.exists() else "first", flush=True)
if not begun.exists():
    begun.touch()
    time.sleep(120)
"""


def python_job(folder: Path, name: str, code: str, *arguments: object, **environment: str) -> Job:
    command = (sys.executable, "-c", code, *map(str, arguments))
    return Job(name=name, command=command, environment=environment, log=folder / f"{name}.log")


def ignored(jobs: Sequence[Job]) -> None:
    """What runs now."""


def ends_of(jobs: list[Job], folder: Path, launcher: SlurmLauncher = SMALL) -> dict[str, int | str]:
    ends: list[tuple[str, int | str]] = []
    launcher.run(jobs, folder, ignored, lambda job, end: ends.append((job.name, end)))
    assert len(ends) == len(jobs)
    for said in folder.glob("slurm/*/*log.err"):
        print(said.read_text())  # shown where the test fails
    return dict(ends)


def wait_until_there(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear within a minute")


def array_number(folder: Path) -> str:
    (tasks,) = folder.glob("slurm/*/tasks.json")
    squeue = ["squeue", "--noheader", "--states=all", f"--name={tasks.parent.name}", "--format=%F"]
    return subprocess.run(squeue, capture_output=True, text=True, check=True).stdout.split()[0]


def once_begun(begun: Path, folder: Path, *command: str) -> threading.Thread:
    """A thread that waits for the file ``begun``, then gives the Slurm ``command`` with the array's number."""

    def act() -> None:
        wait_until_there(begun)
        subprocess.run([*command, array_number(folder)], check=True)

    thread = threading.Thread(target=act)
    thread.start()
    return thread


@on_slurm
def test_every_job_of_an_array_reports_its_own_exit_code(tmp_path):
    told = "import os; print(os.environ['GREETING'], os.environ['SLURM_CPUS_PER_TASK'])"
    jobs = [
        python_job(tmp_path, "good", told, GREETING="hello"),
        python_job(tmp_path, "wrong_input", "raise SystemExit(2)"),
        python_job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
        Job("no_program", (str(tmp_path / "missing"),), {}, tmp_path / "no_program.log"),
    ]
    jobs[0].log.write_text("an earlier attempt\n")
    ends = ends_of(jobs, tmp_path, asking(cpus=2, memory=1))
    assert "No such file" in str(ends.pop("no_program"))
    assert ends == {"good": 0, "wrong_input": 2, "killed": 128 + 9}
    assert jobs[0].log.read_text() == "an earlier attempt\nhello 2\n"


@on_slurm
def test_no_more_than_max_parallel_tasks_run_at_once(tmp_path):
    code = "import sys, time; print(time.time()); time.sleep(1); print(time.time())"
    jobs = [python_job(tmp_path, f"job_{number}", code) for number in range(3)]
    assert ends_of(jobs, tmp_path, asking(jobs=1)) == {"job_0": 0, "job_1": 0, "job_2": 0}
    spans = sorted([float(line) for line in job.log.read_text().split()] for job in jobs)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(spans))


@on_slurm
@pytest.mark.parametrize("interruption", [("scontrol", "requeue"), ("scancel", "--signal=USR2")], ids=" ".join)
def test_an_interrupted_task_stops_its_command_and_runs_it_again(tmp_path, interruption):
    jobs = [python_job(tmp_path, "long", LONG_AT_FIRST, tmp_path / "begun")]
    thread = once_begun(tmp_path / "begun", tmp_path, *interruption)
    assert ends_of(jobs, tmp_path) == {"long": 0}
    thread.join()
    assert jobs[0].log.read_text().split() == ["first", "stopped", "second"]


@on_slurm
def test_a_cancelled_array_is_reported_as_cancelled(tmp_path):
    jobs = [python_job(tmp_path, f"long_{n}", LONG_AT_FIRST, tmp_path / f"begun_{n}") for n in range(2)]
    thread = once_begun(tmp_path / "begun_0", tmp_path, "scancel")
    assert ends_of(jobs, tmp_path, asking(jobs=1)) == {"long_0": "cancelled", "long_1": "cancelled"}
    thread.join()
    assert jobs[0].log.read_text().split() == ["first", "stopped"]
    assert not (tmp_path / "begun_1").exists()


@on_slurm
def test_a_stopped_sweep_leaves_its_task_running_and_the_next_one_waits_for_it(tmp_path):
    code = "import time; print('begun', flush=True); time.sleep(8)"
    jobs = [python_job(tmp_path, "long", code)]
    sweep = (
        "import pathlib, sys; from test_slurm import SMALL, python_job; "
        "here = pathlib.Path(sys.argv[1]); "
        "SMALL.run([python_job(here, 'long', sys.argv[2])], here, print, print)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", sweep, str(tmp_path), code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until_there(jobs[0].log)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=60)
    assert f"scancel {array_number(tmp_path)}" in said
    assert first.returncode != 0
    assert ends_of(jobs, tmp_path) == {"long": 0}
    assert jobs[0].log.read_text() == "begun\n"


@on_slurm
def test_a_partition_that_is_not_there_is_refused_in_the_words_of_slurm(tmp_path):
    with pytest.raises(UserError, match=r"Slurm refuses the runs: .*invalid partition specified: nowhere"):
        ends_of([python_job(tmp_path, "job", "")], tmp_path, asking(partition="nowhere"))
    assert list(tmp_path.glob("slurm/*")) == []


@on_slurm
def test_further_parameters_and_setup_reach_the_batch_script(tmp_path):
    code = "import os; print(os.environ['FROM_SETUP'])"
    launcher = asking(extra="nice=7,exclusive", setup="export FROM_SETUP=ready")
    jobs = [python_job(tmp_path, "job", code)]
    assert ends_of(jobs, tmp_path, launcher) == {"job": 0}
    assert jobs[0].log.read_text() == "ready\n"
    shown = subprocess.run(["scontrol", "show", "job", array_number(tmp_path)], capture_output=True, text=True).stdout
    assert "Nice=7" in shown
    assert "OverSubscribe=NO" in shown
    assert "Requeue=1" in shown


def test_the_tasks_that_slurm_runs_are_told_and_those_that_wait_or_wait_again_are_not(tmp_path, monkeypatch):
    queue, own = tmp_path / "queue", tmp_path / "slurm/fedbias-1"
    own.mkdir(parents=True)
    (own / "tasks.json").write_text('["first", "second"]')
    for program, script in (("squeue", f"cat {queue}"), ("sbatch", "exit 1"), ("srun", "exit 1")):
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    states = iter([("RUNNING", "RUNNING"), ("PENDING", "COMPLETED"), ("COMPLETED", "COMPLETED")])

    def next_states(*now: str) -> None:
        lines = (f"fedbias-1|{place}|7|{state}|None\n" for place, state in enumerate(now))
        queue.write_text("".join(lines))
        for place, state in enumerate(now):
            if state == "COMPLETED":
                (own / f"end_{place}.json").write_text("0")

    told, ends = [], []

    def on_running(jobs: Sequence[Job]) -> None:
        told.append([job.name for job in jobs])
        next_states(*next(states, ()))

    next_states("RUNNING", "PENDING")
    jobs = [python_job(tmp_path, name, "") for name in ("first", "second")]
    SMALL.run(jobs, tmp_path, on_running, lambda job, end: ends.append((job.name, end)))
    assert told == [["first"], ["first", "second"], [], []]
    assert ends == [("second", 0), ("first", 0)]


def test_without_sbatch_the_error_names_the_local_launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"--launcher slurm needs sbatch, .*--launcher local"):
        ends_of([python_job(tmp_path, "job", "")], tmp_path)


def test_without_submitit_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    for program in ("sbatch", "squeue", "srun"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        ends_of([python_job(tmp_path, "job", "")], tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpus": -1}, "--slurm_gpus must be at least 0, got -1"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"extra": "--qos=high"}, "without --"),
        ({"extra": "comment=a\n#SBATCH --uid=0"}, "'comment'"),
        ({"extra": "array=0-9"}, "array: fedbias sets it"),
        ({"extra": "time=60"}, "time: it has an option of its own"),
    ],
)
def test_wrong_options_are_refused_by_name(wrong, said):
    with pytest.raises(UserError, match=said):
        asking(**wrong)


def test_parameters_of_sbatch_are_read_from_one_text():
    found = asking(extra="account=bias, qos=long,exclusive").extra
    assert found == {"account": "bias", "qos": "long", "exclusive": ""}
    assert asking().extra == {}
