"""Runs as child processes: how many at once, what they see, how they end."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.sweep import local
from fedbias_plugin.sweep.base import Job
from fedbias_plugin.sweep.execution import final_numbers
from fedbias_plugin.sweep.local import LocalLauncher


def ignored(jobs):
    pass


def job(tmp_path, name, code, **environment):
    return Job(name, (sys.executable, "-c", code), environment, tmp_path / "logs" / f"{name}.log")


class Slots(LocalLauncher):
    """Has these environments, whatever the machine has."""

    def __init__(self, *environments):
        super().__init__()
        self.environments = environments

    def slots(self):
        return list(self.environments)


def test_jobs_get_their_environment_and_their_exit_codes_are_told(tmp_path):
    ends = {}
    jobs = [
        job(tmp_path, "good", "import os; print(os.environ['SLOT'], os.environ['OWN'])", OWN="mine"),
        job(tmp_path, "bad", "import sys; sys.exit('what went wrong')"),
        job(tmp_path, "killed", "import os; os.kill(os.getpid(), 9)"),
    ]
    Slots({"SLOT": "first"}).run(jobs, tmp_path, ignored, lambda one, outcome: ends.update({one.name: outcome}))
    assert ends == {"good": 0, "bad": 1, "killed": -9}
    assert jobs[0].log.read_text() == "first mine\n"
    assert jobs[1].log.read_text() == "what went wrong\n"


def test_no_more_jobs_go_on_at_once_than_there_are_slots_and_no_slot_is_used_twice(tmp_path):
    code = "import os, time; t = time.time(); time.sleep(0.4); print(os.environ['SLOT'], t, time.time())"
    jobs = [job(tmp_path, f"job{number}", code) for number in range(5)]
    Slots({"SLOT": "a"}, {"SLOT": "b"}).run(jobs, tmp_path, ignored, lambda one, outcome: None)
    spans = [(slot, float(begin), float(end)) for slot, begin, end in (one.log.read_text().split() for one in jobs)]
    assert {slot for slot, _, _ in spans} == {"a", "b"}
    for number, (slot, begin, end) in enumerate(spans):
        others = spans[:number] + spans[number + 1 :]
        assert not any(other == slot and begin < finish and start < end for other, start, finish in others)


def test_a_signal_is_handed_on_and_the_jobs_are_waited_for(tmp_path):
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        "print('begun', flush=True); time.sleep(60)"
    )
    first, second = job(tmp_path, "first", code), job(tmp_path, "second", "print('never')")

    def when_begun():
        while not first.log.exists() or "begun" not in first.log.read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=when_begun).start()
    with pytest.raises(Stopped):
        Slots({}).run([first, second], tmp_path, ignored, lambda one, outcome: None)
    assert first.log.read_text() == "begun\nsaved\n"
    assert not second.log.exists()


def test_without_gpus_one_run_goes_on_at_a_time_and_the_cores_are_shared(monkeypatch):
    monkeypatch.setattr(local, "_gpus", list)
    monkeypatch.setattr("fedbias_plugin.sweep.local.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert LocalLauncher().slots() == [{"OMP_NUM_THREADS": "8"}]
    assert LocalLauncher(jobs=3).slots() == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert LocalLauncher(jobs=2).slots() == [{}, {}]


def test_every_gpu_gets_one_run(monkeypatch):
    monkeypatch.setattr(local, "_gpus", lambda: ["2", "5"])
    assert LocalLauncher().slots() == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert LocalLauncher(jobs=1).slots() == [{"CUDA_VISIBLE_DEVICES": "2"}]
    with pytest.raises(UserError, match="--jobs 3: there are 2 GPUs, and each takes one run"):
        LocalLauncher(jobs=3).slots()


@pytest.mark.parametrize(
    ("visible", "names"), [("", ["0", "1"]), ("3,7", ["3", "7"]), ("MIG-a, MIG-b", ["MIG-a", "MIG-b"])]
)
def test_gpus_keep_the_names_that_the_environment_gives_them(visible, names, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local._gpus() == names


def test_the_line_of_a_finished_run_says_what_its_scores_are_of(tmp_path):
    crows = {"score": 46.9, "ci95": [41.9, 51.8], "n": 384, "length_only": 42.7}
    stereo = {"ss": 50.8, "ci95": None, "n": 128, "terms": 4, "lms": 100.0}
    final = {"crows_pairs": crows, "stereoset": stereo, "heldout_loss": {"loss": 0.82, "n": 120}}
    (tmp_path / "summary.json").write_text(json.dumps({"final": final}))
    assert final_numbers(tmp_path) == (
        "CrowS 46.9 [41.9, 51.8] (length alone: 42.7; n=384), "
        "SS 50.8 (n=128, 4 terms, too few for an interval) at LMS 100.0, ICAT –, held-out loss 0.8200 (120 rows)"
    )
