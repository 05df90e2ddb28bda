"""Progress bars on a terminal, and none elsewhere, behind one interface."""

import io

import pytest
from rich.console import Console

from fedbias_plugin.tracking.progress import Progress, TerminalProgress, build_progress


def terminal(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=100, color_system=None)


def use(progress: Progress) -> float:
    """The same code for both kinds: two rounds, in each of which ten sentences are scored in two batches."""
    done = 0.0
    with progress, progress.rounds(2) as advance_round:
        for _ in range(2):
            with progress.task("score", 10) as advance:
                advance(4)
                advance(6)
                done += advance.done
            advance_round()
    return done


def test_both_kinds_count_alike() -> None:
    assert use(Progress()) == use(TerminalProgress(terminal(io.StringIO()))) == 20


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
