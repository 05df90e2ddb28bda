"""What a message may show of data."""

from __future__ import annotations

import doctest
import logging

import pytest

from fedbias_plugin import errors, logs, redaction
from fedbias_plugin.errors import LONGEST_MESSAGE, UserError, did_you_mean, first_line, quoted


@pytest.mark.parametrize("module", [errors, logs, redaction], ids=lambda module: module.__name__)
def test_the_examples_of_the_documentation_are_true(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\r\tb", r"a\r\tb"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\ud83d", r"\ud83d"),
        ("\u2028\x85\x9b", r"\u2028\x85\x9b"),
        ("漢字 é עברית 🙂", "漢字 é עברית 🙂"),
    ],
)
def test_a_message_spells_out_what_a_terminal_would_obey_and_keeps_every_script(hostile, shown):
    assert str(UserError(f"{hostile}: odd")) == f"{shown}: odd"


def test_a_message_that_is_too_long_keeps_its_beginning_and_its_advice():
    message = str(UserError(f"rows.csv: {'column, ' * 10_000}; wanted are instruction, output."))
    assert len(message) == LONGEST_MESSAGE
    assert message.startswith("rows.csv: column")
    assert message.endswith("wanted are instruction, output.")


def test_a_value_is_quoted_on_one_short_line_whatever_it_is():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in ("x" * 10**6, 16**9_999, nested, {"a\n": "\u202e"}, b"\0" * 999, float("nan"), None):
        text = quoted(value)
        assert len(text) <= 80
        assert text.isprintable()


def test_an_error_of_a_library_is_told_by_its_first_line_or_its_type():
    assert first_line(OSError("disk full\nmore")) == "disk full"
    assert first_line(KeyError()) == "KeyError"


def test_a_name_of_a_megabyte_is_compared_with_nothing():
    assert did_you_mean("bama" * 250_000, ["bama"]) == ""


def test_a_log_line_cannot_be_forged_by_a_file_name(capsys):
    logs.log_to_stderr()
    logging.getLogger("fedbias_plugin").warning("%s: odd", "a\nerror: all is lost\x1b[A")
    assert capsys.readouterr().err == "warning: a\n  error: all is lost\\x1b[A: odd\n"
