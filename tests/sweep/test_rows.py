"""What a sweep shows of the runs that go on: rows on a terminal, read from the runs' folders; lines elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from fedbias_plugin.sweep import rows
from fedbias_plugin.sweep.base import Launcher
from fedbias_plugin.sweep.execution import Execution
from fedbias_plugin.sweep.folder import SweepFolder
from fedbias_plugin.sweep.plan import PlannedRun
from fedbias_plugin.sweep.rows import Row

LONG = "fedavg_1B2C_bama_bama_alpha-0.25_bama_lambda-0.05_bama_weighting-paper_seed-2023"


def write_rounds(folder: Path, *seconds: float, age: float = 0.0) -> None:
    """``metrics.jsonl`` with round 0 (100 s) and one round for each of ``seconds``, written ``age`` seconds ago."""
    folder.mkdir(parents=True, exist_ok=True)
    times = [{"evaluate": 100.0}, *({"train": each - 1, "evaluate": 1.0} for each in seconds)]
    lines = [json.dumps({"round": number, "seconds": each}) + "\n" for number, each in enumerate(times)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    os.utime(folder / "metrics.jsonl", (time.time() - age,) * 2)


def shown(folder: Path, rounds: int = 5, ago: float = 1000.0, usual: float | None = None) -> tuple[str, str]:
    return Row(folder.with_suffix(".log"), folder, rounds, time.time() - ago, usual).text()


def test_a_run_without_a_record_is_starting_and_takes_as_long_as_the_others(tmp_path):
    assert shown(tmp_path / "run") == ("starting", "")
    assert shown(tmp_path / "run", ago=60, usual=3660) == ("starting", "60 minutes left")


def test_the_time_left_is_the_mean_of_the_rounds_that_trained_times_those_to_come(tmp_path):
    write_rounds(tmp_path / "run")
    assert shown(tmp_path / "run") == ("round 1/5", "")
    write_rounds(tmp_path / "run", 3600, 7200)
    assert shown(tmp_path / "run") == ("round 3/5", "4.5 hours left")
    write_rounds(tmp_path / "run", 3600, 7200, age=3600)
    assert shown(tmp_path / "run", ago=9000) == ("round 3/5", "3.5 hours left")


def test_a_run_that_goes_on_has_not_used_the_time_in_which_it_did_not_run(tmp_path):
    write_rounds(tmp_path / "run", 7200, age=10**6)
    assert shown(tmp_path / "run", rounds=2, ago=0) == ("round 2/2", "2.0 hours left")


def test_a_late_round_and_the_end_come_at_any_moment(tmp_path):
    write_rounds(tmp_path / "run", 60, 60, age=900)
    assert shown(tmp_path / "run") == ("round 3/5", "any moment")
    assert shown(tmp_path / "run", rounds=2) == ("round 2/2", "any moment")


@pytest.mark.parametrize("content", ["", '{"round": 0, "sec', "[]", '{"round": 1, "seconds": null}\n'])
def test_half_of_a_line_shows_nothing_and_fails_nothing(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(content)
    assert shown(tmp_path) == ("", "")


class TwoRuns(Launcher):
    """Runs that begin, of which one ends and is told of, while ``during`` looks."""

    at_once = 2

    def __init__(self, during):
        super().__init__()
        self.during = during

    def run(self, jobs, folder, on_running, on_end):
        for now in (jobs[:1], jobs, jobs[1:]):
            on_running(now)
            if len(now) == 1 and now[0] is jobs[1]:
                on_end(jobs[0], "lost")
            self.during([job.name for job in now])


def sweep(folder: Path, during) -> Execution:
    settings = {"num_rounds": 5}
    planned = [PlannedRun(name, {}, settings, ("mine",)) for name in (LONG, "fedadam_3B_plain_seed-1")]
    return Execution(SweepFolder(folder), planned, TwoRuns(during))


def test_a_terminal_of_80_columns_shows_each_run_with_its_log_and_nothing_is_left_at_the_end(tmp_path, monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(rows, "terminal_console", lambda: console)
    pictures = []

    def look(names):
        write_rounds(tmp_path / "runs" / LONG, 60, 60)
        screen.seek(0), screen.truncate()
        live = console._live_stack[-1] if hasattr(console, "_live_stack") else console._live
        live.refresh()
        pictures.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", screen.getvalue()))

    sweep(tmp_path, look).run()
    first, both, last = pictures
    assert all(len(line) <= 80 - rows.SPARE for picture in pictures for line in picture.splitlines())
    assert f"running now, logs in {tmp_path}/logs:".replace("\n", "") in first.replace("\n", "")
    assert "round 3/5  3 minutes left" in first
    assert "fedadam" not in first
    assert "fedadam_3B_plain_seed-1.log" in both
    assert "starting" in both
    assert LONG[:40] in both
    assert LONG[:40] not in last
    assert "[0/2] done" in last
    assert screen.getvalue()[-80:].count("\x1b[2K") >= 3  # lines that are taken away


def test_elsewhere_a_line_says_that_a_run_has_begun_and_where_its_log_is(tmp_path, capsys):
    sweep(tmp_path, lambda names: None).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{LONG}: started, log: {tmp_path}/logs/{LONG}.log"
    assert lines[1] == f"fedadam_3B_plain_seed-1: started, log: {tmp_path}/logs/fedadam_3B_plain_seed-1.log"
    assert lines[2].startswith(f"[0/2] {LONG}: FAILED, lost: it left no log")
    assert len(lines) == 3
