"""Scores by bias type and domain, as dashboards take them."""

import itertools
from collections.abc import Callable

import pytest

from fedbias_plugin.tracking.categories import COLUMNS, category_history, category_rows
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord

Make = Callable[[int], RoundRecord]


def test_categories_are_rows_of_both_benchmarks(make_record: Make) -> None:
    rows = category_rows(make_record(1))
    assert all(len(row) == len(COLUMNS) for row in rows)
    assert rows == [
        [1, "crows_pairs", "gender", 53.0, 40.0, 60.0, None, 40, None, 55.5, None, 3.0, "crows_pairs: gender"],
        [1, "crows_pairs", "age", 48.0, None, None, None, 9, None, 45.0, None, 2.0, "crows_pairs: age"],
        [1, "stereoset", "race", 43.0, 41.0, 61.0, 90.0, 30, 80.0, None, 7, 7.0, "stereoset: race"],
    ]


def test_a_round_without_measurements_has_no_categories() -> None:
    assert category_rows(RoundRecord(0, GlobalRecord())) == category_history([RoundRecord(0, GlobalRecord())]) == []


@pytest.mark.parametrize("rounds", [1, 2, 9, 10, 11, 12, 57, 64])
def test_many_rounds_are_thinned_evenly_and_the_first_and_last_stay(make_record: Make, rounds: int) -> None:
    records = [make_record(number) for number in range(rounds)]
    rows = category_history([*records, RoundRecord(rounds, GlobalRecord())], most=30)  # 3 rows a round: ten rounds
    kept = list(dict.fromkeys(row[0] for row in rows))
    assert len(rows) <= 30
    assert (kept[0], kept[-1]) == (0, rounds - 1)
    gaps = {after - before for before, after in itertools.pairwise(kept[:-1])}
    assert len(gaps) <= 1
    if rounds <= 10:
        assert kept == list(range(rounds))
    else:
        assert len(kept) >= 5
