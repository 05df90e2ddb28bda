"""Progress bars on a terminal, and none elsewhere, behind one interface."""

import io
import logging
import os
import pty
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fedbias_plugin.logs import log_to_stderr
from fedbias_plugin.progress import Progress, TerminalProgress, build_progress


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=100, color_system=None)


def use(progress: Progress) -> None:
    """The same code for both kinds: two rounds, in each of which ten sentences are scored in two batches."""
    with progress, progress.rounds(2) as advance_round:
        for _ in range(2):
            with progress.task("score", 10) as advance:
                advance(4)
                advance(6)
            advance_round()


def test_both_kinds_are_used_alike_and_only_a_terminal_is_drawn_on(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    use(TerminalProgress(terminal(stream)))
    assert "score" in stream.getvalue()
    use(Progress())
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done_of_how_much() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(terminal(stream))
    with progress.task("score clients", 3) as advance:
        advance()
        progress._progress.refresh()
    assert "score clients" in stream.getvalue()
    assert "1/3" in stream.getvalue()


def test_no_bar_is_left_when_the_last_task_closes_or_fails() -> None:
    progress = TerminalProgress(terminal(io.StringIO()))
    with pytest.raises(ZeroDivisionError), progress.task("score", None) as advance:
        advance(1 / 0)
    assert progress._progress.task_ids == []
    assert not progress._progress.live.is_started


def test_closing_twice_and_advancing_after_closing_do_no_harm() -> None:
    progress = TerminalProgress(terminal(io.StringIO()))
    task = progress.rounds(1)
    progress.close()
    progress.close()
    task.close()
    task()


def test_the_standard_output_of_a_pipe_gets_no_bars(capsys: pytest.CaptureFixture[str]) -> None:
    progress = build_progress()
    assert type(progress) is Progress
    use(progress)
    assert capsys.readouterr().out == ""


def test_a_given_terminal_gets_bars() -> None:
    assert isinstance(build_progress(terminal(io.StringIO())), TerminalProgress)


def test_a_bar_leaves_room_for_what_a_terminal_echoes_of_ctrl_c() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    with TerminalProgress(console) as progress, progress.rounds(2), progress.task("round 10: score clients", 10_000):
        pass
    rows = [line for line in re.split(r"[\r\n]|\x1b\[[\d;?]*[A-Za-z]", stream.getvalue()) if "-:--:--" in line]
    assert rows
    assert max(map(len, rows)) <= 76


def test_a_bar_that_closes_is_off_the_screen_before_anything_else_is_printed() -> None:
    stream = io.StringIO()
    with TerminalProgress(terminal(stream)) as progress, progress.rounds(2):
        progress.task("score", 10).close()
        assert progress._progress.live._live_render.last_render_height == 1


def test_the_log_goes_above_the_bars_of_a_terminal_and_stays_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader, follower = pty.openpty()
    with (
        os.fdopen(leader, "rb", buffering=0) as seen,
        os.fdopen(follower, "w") as screen,
        open(tmp_path / "log", "w") as log,
    ):
        monkeypatch.setenv("COLUMNS", "40")
        for stream in (screen, log):
            monkeypatch.setattr(sys, "stderr", stream)
            log_to_stderr()
            with TerminalProgress(Console(file=screen, force_terminal=True)) as progress, progress.rounds(2):
                monkeypatch.setattr(sys, "stderr", proxy := io.StringIO())
                logging.getLogger("fedbias_plugin").warning("a client decides alone, and so on and on")
            assert proxy.getvalue().splitlines()[:1] == (
                ["warning: a client decides alone, and so"] if stream is screen else []
            )
        assert seen.read(1)
    assert (tmp_path / "log").read_text() == "warning: a client decides alone, and so on and on\n"
