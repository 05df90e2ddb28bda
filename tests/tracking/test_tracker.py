"""The group of trackers never loses a number to a tracker that fails."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.tracking.jsonl import JsonlTracker, read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker, TrackerGroup, build_trackers

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]


class Recorder(Tracker):
    name = "recorder"

    def __init__(self, calls: list[str], label: str = "", fail_on: str = "") -> None:
        self.calls, self.label, self.fail_on = calls, label, fail_on

    def _call(self, what: str) -> None:
        self.calls.append(f"{self.label}{what}")
        if what == self.fail_on:
            raise ConnectionError("server gone\nwith a second line")

    def start(self, run: RunInfo) -> None:
        self._call("start")

    def log_round(self, record: RoundRecord) -> None:
        self._call(f"round{record.round}")

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._call("finish")

    def abort(self, reason: str) -> None:
        self._call(reason)


def test_the_primary_tracker_is_fed_first(make_run: MakeRun, make_record: Make) -> None:
    calls: list[str] = []
    group = TrackerGroup(Recorder(calls, "1:"), [Recorder(calls, "2:")])
    group.start(make_run())
    group.log_round(make_record(0))
    group.finish({})
    group.abort("why")
    assert calls == ["1:start", "2:start", "1:round0", "2:round0", "1:finish", "2:finish", "1:why", "2:why"]


@pytest.mark.parametrize("fail_on", ["start", "round1", "finish"])
def test_a_failing_tracker_is_dropped_with_one_line_and_no_number_is_lost(
    make_run: MakeRun, make_record: Make, fail_on: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    group = build_trackers("jsonl", extra=[Recorder(calls, fail_on=fail_on)])
    run = make_run()
    group.start(run)
    for number in range(3):
        group.log_round(make_record(number))
    group.finish({})
    assert calls[-1] == fail_on
    assert [record.round for record in read_rounds(run.output_dir)] == [0, 1, 2]
    assert (Path(run.output_dir) / "summary.json").exists()
    assert len(caplog.records) == 1
    assert "ConnectionError: server gone)" in caplog.text


def test_an_error_of_the_primary_tracker_ends_the_run(make_run: MakeRun) -> None:
    with pytest.raises(ConnectionError):
        TrackerGroup(Recorder([], fail_on="start")).start(make_run())


def test_an_interrupt_is_not_swallowed(make_run: MakeRun) -> None:
    class Interrupted(Recorder):
        def start(self, run: RunInfo) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrackerGroup(Recorder([]), [Interrupted([])]).start(make_run())


@pytest.mark.parametrize("spec", ["", "none", "jsonl", "wandb", "wandb,jsonl", " jsonl , wandb,wandb"])
def test_jsonl_is_always_there_and_first(spec: str) -> None:
    group = build_trackers(spec)
    assert isinstance(group.primary, JsonlTracker)
    assert [tracker.name for tracker in group.others] == (["wandb"] if "wandb" in spec else [])


def test_an_unknown_tracker_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"'wanbd' is unknown.*Did you mean 'wandb'\?"):
        build_trackers("jsonl,wanbd")
