"""The curves of W&B and TensorBoard, and what their tables of runs sort by."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord
from fedbias_plugin.tracking.series import highlights, series

Make = Callable[[int], RoundRecord]


def test_a_round_of_two_clients_has_these_curves_and_no_other(make_record: Make) -> None:
    assert series(make_record(1)) == {
        "round": 1,
        "bias/bias_score": 3.25,
        "bias/crows_pairs": 52.0,
        "bias/crows_pairs_delta": 2.0,
        "bias/stereoset": 44.0,
        "bias/stereoset_delta": 6.0,
        "bias/stereoset_lms": 90.0,
        "bias/stereoset_icat": 81.5,
        "eval/heldout_loss": 2.125,
        "train/loss": 1.375,
        "train/learning_rate": 5e-5,
        "aggregation/mass": 1.0,
        "aggregation/effective_clients": 1 / 0.68,
        "aggregation/weight_on_poisoned": 0.2,
        "aggregation/refused": 0,
        **{f"{who}/bias_score": 15.0 for who in ("client_0", "poisoned")},
        **{f"{who}/weight": 0.2 for who in ("client_0", "poisoned")},
        **{f"{who}/train_loss": 1.25 for who in ("client_0", "poisoned")},
        **{f"{who}/update_norm": 0.5 for who in ("client_0", "poisoned")},
        **{f"{who}/bias_score": 1.0 for who in ("client_4", "clean")},
        **{f"{who}/weight": 0.8 for who in ("client_4", "clean")},
        **{f"{who}/train_loss": 1.5 for who in ("client_4", "clean")},
        **{f"{who}/update_norm": 0.25 for who in ("client_4", "clean")},
        "run/seconds_train": 1.0,
        "run/seconds_assess": 2.0,
        "run/seconds_aggregate": 0.5,
        "run/seconds_evaluate": 3.0,
        "run/peak_memory_mib": 1024.0,
        "run/warnings": 0,
    }


def test_three_clients_have_at_most_45_curves_even_with_rouge_and_a_stage_of_somebody_else(make_record: Make) -> None:
    record = make_record(1)
    record.clients[2] = ClientRecord(0.0, 300, 1.0, 0.1, {}, 2.0, 0.1)
    assert len(series(record)) == 41
    record.global_.metrics["rouge_l"] = {"value": 25.0, "ideal": None, "f1": 25.0, "n": 4, "max_new_tokens": 128}
    record.clients[2].extra["clipped"] = 0.5
    assert len(series(record)) <= 45


def test_the_table_of_the_documents_names_every_curve(make_record: Make) -> None:
    page = (Path(__file__).parents[2] / "docs/wandb.md").read_text(encoding="utf-8")
    rows = [row for row in page.split("## The curves")[1].split("\n\n")[2].splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert len(named) == len(set(named)) > 20
    kinds = ("poisoned/", "clean/")
    found = {re.sub("^client_[0-9]+", "client_0", key) for key in series(make_record(1)) if not key.startswith(kinds)}
    assert {name for name in named if not name.startswith(kinds)} == found - {"round"} | {"eval/rouge_l"}


def test_only_finite_numbers_have_a_curve() -> None:
    block = {"value": math.nan, "ideal": 50.0, "score": math.nan, "items": "full", "tie": True, "n": None}
    record = RoundRecord(0, GlobalRecord({"crows_pairs": block}))
    phases = {f"run/seconds_{phase}" for phase in ("train", "assess", "aggregate", "evaluate")}
    assert set(series(record)) == {"round", "run/warnings", *phases}


def test_a_metric_of_somebody_else_has_a_curve_of_the_model_of_every_client_and_of_both_kinds(
    make_record: Make,
) -> None:
    record = make_record(1)
    record.global_.metrics |= {
        "gap": {"value": -0.5, "ideal": 0.0, "n": 3, "ci95": None, "spread": 0.25},
        "length": {"value": 12.0, "ideal": None, "n": 3, "ci95": None},
    }
    record.clients[0].metrics["gap"] = {"value": 2.0, "ideal": 0.0, "n": 3}
    before, found = series(make_record(1)), series(record)
    assert {key: value for key, value in found.items() if key not in before} == {
        "bias/gap": -0.5, "bias/gap_delta": 0.5, "eval/length": 12.0, "client_0/gap": 2.0, "poisoned/gap": 2.0,
    }  # fmt: skip


def test_poisoned_and_clean_clients_have_means_and_a_client_whose_rows_nobody_knows_is_of_neither(
    make_record: Make,
) -> None:
    record = make_record(1)
    record.clients[7] = ClientRecord(0.5, 100, train_loss=2.25, bias_score=5.0, weight=0.0)
    record.clients[9] = ClientRecord(None, 300, bias_score=99.0)
    found = series(record)
    assert (found["poisoned/bias_score"], found["clean/bias_score"]) == (10.0, 1.0)
    assert found["client_9/bias_score"] == 99.0
    assert found["poisoned/train_loss"] == 1.75
    assert found["train/loss"] == pytest.approx((300 * 1.25 + 300 * 1.5 + 100 * 2.25) / 700)  # every row counts alike


def test_refused_updates_and_warnings_are_counted(make_record: Make) -> None:
    record = make_record(1)
    record.clients[4].refused, record.warnings = "NaN", ["a", "b"]
    found = series(record)
    assert (found["aggregation/refused"], found["run/warnings"]) == (1, 2)


def test_a_run_is_its_last_measured_round_with_means_of_weights_and_sums_of_seconds(make_record: Make) -> None:
    rounds = [make_record(number) for number in range(4)]
    rounds[1].weight_on_poisoned = 0.5
    rounds[2].peak_memory_bytes = 2**31
    rounds[3].global_ = GlobalRecord()
    found = highlights(rounds)
    expected = {
        "final/round": 2, "final/crows_pairs": 53.0, "final/crows_pairs/delta": 3.0, "final/crows_pairs/change": 2.0,
        "final/crows_pairs/length_only": 42.7, "final/crows_pairs/n": 280, "final/crows_pairs/noise_floor": 2.4,
        "final/stereoset/delta": 7.0, "final/stereoset/change": -2.0, "final/stereoset/lms": 90.0, "final/delta": 5.0,
        "final/heldout_loss": 2.125, "final/heldout_loss/perplexity": 8.372897, "final/bias_score": 3.25,
        "final/weight_on_poisoned": pytest.approx((0.5 + 0.2 + 0.2) / 3), "final/mass": 1.0,
        "final/seconds/train": 4.0, "final/seconds/evaluate": 12.0, "final/peak_memory_mib": 2048.0,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected


def test_the_best_round_is_the_trained_one_with_the_least_bias_score(make_record: Make) -> None:
    rounds = [make_record(number) for number in range(3)]
    for record, score in zip(
        rounds, (0.5, 1.5, 3.25), strict=True
    ):  # round 0 is the least biased, but nobody trained it
        record.global_.bias_score = score
    found = {key: value for key, value in highlights(rounds).items() if key.startswith("best/")}
    expected = {"best/round": 1, "best/bias_score": 1.5, "best/crows_pairs/delta": 2.0, "best/stereoset/lms": 90.0}
    assert {key: found.get(key) for key in expected} == expected
    assert "best/crows_pairs/length_only" not in found  # a constant of the run


def test_a_run_without_bias_benchmarks_still_has_its_last_loss() -> None:
    found = highlights([RoundRecord(3, GlobalRecord.from_json({"heldout_loss": {"loss": 0.0, "n": 4}}))])
    assert (found["final/round"], found["final/heldout_loss"], found["final/heldout_loss/n"]) == (3, 0.0, 4)
    assert not any(key.startswith("best/") for key in found)
    assert highlights([]) == {}
