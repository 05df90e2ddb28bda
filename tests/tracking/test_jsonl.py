"""``metrics.jsonl`` survives crashes and resumes, and its reader names what is damaged."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.tracking import jsonl
from fedbias_plugin.tracking.jsonl import JsonlTracker, read_rounds
from fedbias_plugin.tracking.records import RoundRecord, RunInfo

Make = Callable[[int], RoundRecord]
MakeRun = Callable[..., RunInfo]


def write_rounds(run: RunInfo, records: list[RoundRecord]) -> Path:
    tracker = JsonlTracker()
    tracker.start(run)
    for record in records:
        tracker.log_round(record)
    return Path(run.output_dir) / "metrics.jsonl"


def test_every_round_is_one_line_that_reads_back_equal(make_run: MakeRun, make_record: Make) -> None:
    records = [make_record(number) for number in range(3)]
    path = write_rounds(make_run(), records)
    assert len(path.read_text().splitlines()) == 3
    assert read_rounds(path) == records
    assert read_rounds(path.parent) == records


def test_a_round_is_on_the_disk_when_log_round_returns(
    make_run: MakeRun, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    tracker = JsonlTracker()
    tracker.start(run)
    seen: list[bytes] = []
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        seen.append((Path(run.output_dir) / "metrics.jsonl").read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(jsonl.os, "fsync", record_fsync)
    tracker.log_round(make_record(0))
    assert seen[0].endswith(b"}\n")


@pytest.mark.parametrize("cut", [1, 2, 200, -2])
def test_a_half_written_last_line_is_removed_on_reopening(
    make_run: MakeRun, make_record: Make, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_rounds(make_run(), [make_record(0), make_record(1)])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    assert read_rounds(path) == [make_record(0)]
    assert "cut off" in caplog.text
    write_rounds(make_run(), [make_record(1), make_record(2)])
    assert read_rounds(path) == [make_record(number) for number in range(3)]


def test_a_last_line_that_lacks_only_its_end_is_kept(make_run: MakeRun, make_record: Make) -> None:
    path = write_rounds(make_run(), [make_record(0), make_record(1)])
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_rounds(path)) == 2
    write_rounds(make_run(), [make_record(2)])
    assert [record.round for record in read_rounds(path)] == [0, 1, 2]


def test_rounds_repeated_after_a_resume_replace_the_earlier_ones_and_later_stale_ones(
    make_run: MakeRun, make_record: Make
) -> None:
    again = make_record(1)
    again.aggregation_mass = 0.125
    path = write_rounds(make_run(), [make_record(0), make_record(1), make_record(2), again])
    assert [(record.round, record.aggregation_mass) for record in read_rounds(path)] == [(0, None), (1, 0.125)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"round": 1,', "line 2: not JSON"),
        (b'{"round": NaN}', "line 2: NaN is not JSON"),
        (b"[1]", "line 2: holds a JSON list"),
        (b'{"round": 1}', "line 2: 'global' must be an object"),
        (b"\xff\xfe", "line 2: .*decode"),
    ],
)
def test_a_damaged_line_is_named(make_run: MakeRun, make_record: Make, line: bytes, message: str) -> None:
    path = write_rounds(make_run(), [make_record(0)])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UserError, match=message):
        read_rounds(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read"):
        read_rounds(tmp_path)


def test_the_summary_is_strict_json(make_run: MakeRun) -> None:
    run = make_run()
    tracker = JsonlTracker()
    tracker.start(run)
    tracker.finish({"final": {"delta": float("nan")}, "folder": Path("x")})
    summary = json.loads((Path(run.output_dir) / "summary.json").read_text())
    assert summary == {"final": {"delta": None}, "folder": "x"}
