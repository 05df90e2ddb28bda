"""What fits a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from fedbias_plugin.terminal import width_of, wrapped


def test_a_long_line_is_broken_between_words_and_its_rest_indented():
    text = "  warning: a client decides alone\nshort"
    assert wrapped(text, 20).split("\n") == ["  warning: a client", "    decides alone", "short"]


def test_what_is_no_terminal_gets_its_lines_whole():
    line = "word " * 100
    assert wrapped(line, None) == line


def test_paths_and_commands_keep_their_spaces_and_their_line():
    text = "What is finished is kept. To go on: fedbias run --resume runs/first"
    assert wrapped(text, 50).split("\n")[1] == "  fedbias run --resume runs/first"
    assert wrapped("see /a/path/that/is/longer/than/the/terminal/is", 20).split("\n")[1].strip().startswith("/a/path/")


def test_spaces_that_line_up_columns_stay():
    assert wrapped("  a     1     2", 20) == "  a     1     2"


def test_the_width_is_that_of_the_terminal_unless_columns_says_otherwise(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    leader, follower = pty.openpty()
    with os.fdopen(leader), os.fdopen(follower, "w") as stream:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 93, 0, 0))
        assert width_of(stream) == 93
        monkeypatch.setenv("COLUMNS", "61")
        assert width_of(stream) == 61
        monkeypatch.setenv("COLUMNS", "wide")
        assert width_of(stream) == 93


@pytest.mark.parametrize("stream", [None, object()])
def test_a_stream_that_is_none_or_no_file_has_no_width(stream):
    assert width_of(stream) is None


def test_a_file_has_no_width(tmp_path):
    with open(tmp_path / "log", "w") as stream:
        assert width_of(stream) is None
    assert sys.stdout is None or isinstance(width_of(sys.stdout), int | None)
