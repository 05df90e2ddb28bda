"""Warnings of many rounds, each said once."""

import pytest

from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord
from fedbias_plugin.tracking.repeated import RepeatedWarning, repeated_warnings, round_spans, warning_kind
from fedbias_plugin.tracking.run_files import summarise


def history(*warnings: list[str]) -> list[RoundRecord]:
    return [RoundRecord(number, GlobalRecord(), warnings=list(texts)) for number, texts in enumerate(warnings)]


def test_warnings_of_one_head_are_one_with_the_last_text_and_every_round() -> None:
    found = repeated_warnings(history(["low: 55.0"], ["low: 54.0", "other: x"], [], ["low: 53.5"]))
    assert found == [RepeatedWarning("low: 53.5", (0, 1, 3)), RepeatedWarning("other: x", (1,))]
    assert str(found[0]) == "low: 53.5 (rounds 0-1, 3)"


def test_the_summary_lists_warnings_as_texts_that_end_with_their_rounds() -> None:
    assert summarise(history(["low: 55.0"], ["low: 54.0"], []), {})["warnings"] == ["low: 54.0 (rounds 0-1)"]


def test_a_warning_that_a_round_says_twice_counts_it_once() -> None:
    found = repeated_warnings(history([], ["clients/0/train_loss was null", "clients/1/train_loss was null"]))
    assert [warning.rounds for warning in found] == [(1,)]


def test_numbers_do_not_make_another_kind_but_words_before_the_colon_do() -> None:
    assert warning_kind("LMS is 54.9, below 60: a") == warning_kind("LMS is 7, below 60: b")
    assert warning_kind("crows_pairs: all") != warning_kind("stereoset: all")


@pytest.mark.parametrize(
    ("rounds", "text"),
    [([4], "round 4"), ([0, 1], "rounds 0-1"), ([0, 2, 3, 4, 9], "rounds 0, 2-4, 9")],
)
def test_rounds_in_a_row_are_written_as_a_span(rounds: list[int], text: str) -> None:
    assert round_spans(rounds) == text
