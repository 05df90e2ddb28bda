"""A command whose reader has seen enough ends quietly, as any other tool in a pipe."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedbias_plugin.cli.pipes import drop_unread_output

FEDBIAS = [sys.executable, "-m", "fedbias_plugin"]


def read_one_line(*arguments: str) -> tuple[str, int, str]:
    """First line of the output, exit code and standard error of a command whose output is closed after that line."""
    with subprocess.Popen([*FEDBIAS, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    return line, process.returncode, errors


def test_a_command_that_writes_line_by_line_ends_with_the_code_of_sigpipe():
    line, code, errors = read_one_line("doctor", "--quick")
    assert (line, code, errors) == ("machine\n", 141, "")


@pytest.mark.parametrize("command", [["--help"], ["data", "list", "--data_dir", "mini"]])
def test_what_is_still_buffered_when_the_reader_goes_makes_no_noise_either(command):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = ["bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "-", *FEDBIAS, *command]
    done = subprocess.run(pipe, capture_output=True, text=True, env=buffered)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_that_is_not_the_commands_output_is_no_quiet_end():
    assert not drop_unread_output()
