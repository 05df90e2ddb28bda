"""Flat keys for dashboards."""

import math
from collections.abc import Callable

from fedbias_plugin.tracking.flatten import CATEGORY_COLUMNS, category_rows, flatten_record
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord

Make = Callable[[int], RoundRecord]


def test_every_published_key_holds_its_number(make_record: Make) -> None:
    flat = flatten_record(make_record(1))
    expected = {
        "round": 1,
        "global/crows_pairs/score": 52.0,
        "global/crows_pairs/ci95_low": 47.0,
        "global/crows_pairs/ci95_high": 57.0,
        "global/crows_pairs/full/score": 52.5,
        "global/crows_pairs/full/ci95_high": 58.0,
        "global/stereoset/ss": 44.0,
        "global/stereoset/lms": 90.0,
        "global/stereoset/lms_ci95_low": 88.0,
        "global/stereoset/icat": 81.5,
        "global/stereoset/intrasentence/ss": 44.0,
        "global/bias_score": 3.25,
        "global/heldout_loss": 2.125,
        "client/0/bias_score": 15.0,
        "client/0/weight": 0.2,
        "client/4/weight": 0.8,
        "client/4/train_loss": 1.5,
        "client/4/update_norm": 0.25,
        "client/0/crows_pairs/score": 70.0,
        "client/0/stereoset/ss": 60.0,
        "aggregation/mass": 1.0,
        "aggregation/effective_clients": 1 / 0.68,
        "aggregation/weight_on_poisoned": 0.2,
        "seconds/train": 1.0,
        "seconds/evaluate": 3.0,
        "peak_memory_bytes": 2**30,
    }
    assert {key: flat.get(key) for key in expected} == expected


def test_only_finite_numbers_are_kept(make_record: Make) -> None:
    record = RoundRecord(
        0, GlobalRecord({"score": math.nan, "items": "full", "ids_hash": "ab", "tie": True, "n": None})
    )
    assert set(flatten_record(record)) == {
        "round", "peak_memory_bytes", "warnings/count",
        "seconds/train", "seconds/assess", "seconds/aggregate", "seconds/evaluate",
    }  # fmt: skip


def test_categories_are_rows_of_both_benchmarks(make_record: Make) -> None:
    rows = category_rows(make_record(1))
    assert all(len(row) == len(CATEGORY_COLUMNS) for row in rows)
    assert rows == [
        [1, "crows_pairs", "gender", 53.0, 40.0, 60.0, None, 40],
        [1, "crows_pairs", "age", 48.0, None, None, None, 9],
        [1, "stereoset", "race", 43.0, 41.0, 61.0, 90.0, 30],
    ]


def test_a_round_without_measurements_has_no_categories() -> None:
    assert category_rows(RoundRecord(0, GlobalRecord())) == []


def test_warnings_are_counted(make_record: Make) -> None:
    record = make_record(1)
    assert flatten_record(record)["warnings/count"] == 0
    record.warnings = ["a", "b"]
    assert flatten_record(record)["warnings/count"] == 2
