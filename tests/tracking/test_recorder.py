"""The recorder writes a run's files once, and only in the main process."""

import json

import pytest

from fedbias_plugin.tracking.recorder import RunRecorder
from fedbias_plugin.tracking.tracker import Tracker, build_trackers


class Listening(Tracker):
    name = "listening"

    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append("start")

    def log_round(self, record):
        self.calls.append(record.round)

    def finish(self, summary):
        self.calls.append(summary["seed"])

    def abort(self, reason):
        self.calls.append(reason)


FILES = {"manifest.json": {"clients": {}}, "run.json": {"seed": 7}}


@pytest.fixture
def recorded(tmp_path, make_record, make_run):
    def record(writes, failure=None):
        tracker, a_round = Listening(), make_record(1)
        recorder = RunRecorder(tmp_path / "out", build_trackers("jsonl", extra=[tracker]))
        recorder.close()  # nothing was opened: nothing happens
        recorder.open(FILES, make_run(), writes=writes)
        assert recorder.is_open
        recorder.log_round(a_round, {})
        recorder.close(failure)
        recorder.close(failure)
        assert not recorder.is_open
        return tracker.calls, sorted(path.name for path in tmp_path.glob("out/*"))

    return record


def test_the_main_process_writes_files_and_feeds_the_trackers(recorded, tmp_path):
    assert recorded(writes=True) == (["start", 1, 7], ["manifest.json", "metrics.jsonl", "run.json", "summary.json"])
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == {"seed": 7}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rounds"] == 1


def test_another_process_writes_nothing_at_all(recorded):
    assert recorded(writes=False) == ([], [])


def test_a_run_that_failed_has_no_summary(recorded):
    assert recorded(writes=True, failure="the disk is full")[0] == ["start", 1, "the disk is full"]


def test_a_run_that_could_not_be_opened_is_not_closed(tmp_path, make_run):
    (tmp_path / "out").write_text("a file where the folder should be")
    tracker = Listening()
    recorder = RunRecorder(tmp_path / "out", tracker)
    with pytest.raises(FileExistsError):
        recorder.open(FILES, make_run(), writes=True)
    recorder.close(failure="the disk is full")
    assert tracker.calls == []
