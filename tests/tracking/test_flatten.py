"""Flat keys for dashboards."""

import math
from collections.abc import Callable

import pytest

from fedbias_plugin.tracking.flatten import CATEGORY_COLUMNS, category_rows, flatten_record
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord

Make = Callable[[int], RoundRecord]


def test_every_published_key_holds_its_number(make_record: Make) -> None:
    flat = flatten_record(make_record(1))
    expected = {
        "round": 1,
        "global/crows_pairs/score": 52.0,
        "global/crows_pairs/length_only": 42.7,
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
        "global/crows_pairs/delta": 2.0,
        "global/stereoset/delta": 6.0,
        "global/delta": 4.0,
        "global/heldout_n": 100,
        "aggregation/refused": 0,
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
        [1, "crows_pairs", "gender", 53.0, 40.0, 60.0, None, 40, None, 55.5, None],
        [1, "crows_pairs", "age", 48.0, None, None, None, 9, None, 45.0, None],
        [1, "stereoset", "race", 43.0, 41.0, 61.0, 90.0, 30, 80.0, None, 7],
    ]


def test_a_round_without_measurements_has_no_categories() -> None:
    assert category_rows(RoundRecord(0, GlobalRecord())) == []


def test_warnings_are_counted(make_record: Make) -> None:
    record = make_record(1)
    assert flatten_record(record)["warnings/count"] == 0
    record.warnings = ["a", "b"]
    assert flatten_record(record)["warnings/count"] == 2


def test_perplexity_is_that_of_the_heldout_loss_and_one_beyond_any_number_is_left_out(make_record: Make) -> None:
    record = make_record(1)
    assert flatten_record(record)["global/heldout_perplexity"] == pytest.approx(8.372897488127265)  # e^2.125
    record.global_.heldout_loss = {"loss": 1e6, "n": 1}
    flat = flatten_record(record)
    assert flat["global/heldout_loss"] == 1e6
    assert "global/heldout_perplexity" not in flat


def test_what_else_is_measured_on_heldout_rows_has_a_key_too(make_record: Make) -> None:
    record = make_record(1)
    record.global_.heldout_loss = {"loss": 2.0, "n": 100, "rouge_l": 0.25, "ci95": [1.9, 2.1], "note": "text"}
    flat = flatten_record(record)
    found = {key: value for key, value in flat.items() if key.startswith("global/heldout_") and "perplexity" not in key}
    assert found == {
        "global/heldout_loss": 2.0, "global/heldout_n": 100, "global/heldout_rouge_l": 0.25,
        "global/heldout_ci95_low": 1.9, "global/heldout_ci95_high": 2.1,
    }  # fmt: skip


def test_rouge_is_its_f1_and_what_it_was_measured_on(make_record: Make) -> None:
    record = make_record(1)
    record.global_.rouge_l = {"f1": 25.0, "n": 4, "max_new_tokens": 128}
    found = {key: value for key, value in flatten_record(record).items() if "rouge" in key}
    assert found == {"global/rouge_l": 25.0, "global/rouge_l_n": 4, "global/rouge_l_max_new_tokens": 128}


def test_clients_are_marked_as_poisoned_or_clean_with_the_mean_of_each_kind(make_record: Make) -> None:
    record = make_record(1)
    record.clients[7] = ClientRecord(0.5, 300, train_loss=2.25, bias_score=5.0, weight=0.0)
    record.clients[9] = ClientRecord(None, 300, bias_score=99.0)  # a host's own rows: nobody knows
    flat = flatten_record(record)
    marked = {key: value for key, value in flat.items() if key.endswith("/bias_score") and "client_" in key}
    assert marked == {
        "client_poisoned/0/bias_score": 15.0, "client_poisoned/7/bias_score": 5.0,
        "client_poisoned/mean/bias_score": 10.0, "client_clean/4/bias_score": 1.0, "client_clean/mean/bias_score": 1.0,
    }  # fmt: skip
    assert flat["client_poisoned/mean/train_loss"] == 1.75
    assert flat["client_poisoned/mean/stereoset/ss"] == 60.0


def test_refused_updates_are_counted(make_record: Make) -> None:
    record = make_record(1)
    record.clients[4].refused = "NaN"
    assert flatten_record(record)["aggregation/refused"] == 1
