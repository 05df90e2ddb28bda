"""Typed records and the summary of weights."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.known_flags import flags_for, free_to_change
from fedbias_plugin.tracking.records import (
    ClientRecord,
    GlobalRecord,
    RoundRecord,
    recorded_settings,
)
from fedbias_plugin.tracking.weights import weight_summary

Make = Callable[[int], RoundRecord]


def test_a_round_survives_json_and_back(make_record: Make) -> None:
    record = make_record(3)
    text = json.dumps(record.to_json(), allow_nan=False)
    assert RoundRecord.from_json(json.loads(text)) == record


def test_a_line_has_the_keys_of_the_published_format_in_their_order(make_record: Make) -> None:
    data = make_record(1).to_json()
    assert list(data) == [
        "round", "global", "clients", "aggregation", "aggregation_mass", "effective_clients", "weight_on_poisoned",
        "learning_rate", "seconds", "peak_memory_bytes", "warnings", "extra",
    ]  # fmt: skip
    assert list(data["clients"]) == ["0", "4"]
    assert list(data["clients"]["0"]) == [
        "poisoned_share", "rows", "train_loss", "update_norm", "crows_pairs", "stereoset", "bias_score", "weight",
        "attack", "refused", "extra",
    ]  # fmt: skip
    gender = ["occupation_bias", "gender_count", "swapped_prompts", "winobias", "gender_perplexity", "toxicity"]
    gender += ["sentiment", "regard"]
    assert list(data["global"]) == ["crows_pairs", "stereoset", "heldout_loss", "bias_score"]
    assert data["seconds"] == {"train": 1.0, "assess": 2.0, "aggregate": 0.5, "evaluate": 3.0}


def test_a_line_of_an_earlier_version_has_no_learning_rate_and_is_read(make_record: Make) -> None:
    data = make_record(2).to_json()
    assert data.pop("learning_rate") == 2.5e-5
    assert RoundRecord.from_json(data) == dataclasses.replace(make_record(2), learning_rate=None)
    with pytest.raises(ValueError, match="'learning_rate' must be a number or null, found 'small'"):
        RoundRecord.from_json(data | {"learning_rate": "small"})


def test_the_arguments_stand_in_the_round_that_has_them_and_nowhere_else(make_record: Make) -> None:
    record = make_record(0)
    assert "settings" not in record.to_json()
    record.settings = {"fed_alg": "fedavg", "seed": 3}
    data = record.to_json()
    assert list(data)[-1] == "settings"
    assert RoundRecord.from_json(data).settings == {"fed_alg": "fedavg", "seed": 3}


def test_what_belongs_to_the_machine_is_left_out_of_the_recorded_arguments_and_may_change_on_a_resume() -> None:
    config = dict.fromkeys([*flags_for("machine"), "fed_alg", "model_name_or_path"], "x")
    assert recorded_settings(config) == {"fed_alg": "x", "model_name_or_path": "x"}
    assert flags_for("machine") < free_to_change()


def test_nan_becomes_null_and_a_warning_that_names_it() -> None:
    record = RoundRecord(1, GlobalRecord(), {2: ClientRecord(0.0, 10, train_loss=math.nan)}, aggregation_mass=math.inf)
    data = record.to_json()
    assert data["clients"]["2"]["train_loss"] is None
    assert data["aggregation_mass"] is None
    assert data["warnings"] == [
        "clients/2/train_loss was not finite and is written as null",
        "aggregation_mass was not finite and is written as null",
    ]
    assert record.warnings == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": "1"}, "'round' must be a whole number"),
        ({"round": -1}, "'round' must be a whole number"),
        ({"global": None}, "'global' must be an object"),
        ({"clients": {"x": {}}}, "clients/x: invalid literal"),
        ({"clients": {"0": {"poisoned_share": 1.0}}}, "clients/0: 'rows' must be a whole number"),
        ({"aggregation_mass": "much"}, "'aggregation_mass' must be a number or null, found 'much'"),
        ({"seconds": [1]}, "'seconds' must be an object or null"),
        ({"global": {"heldout_loss": {"perplexity": "low"}}}, "'perplexity' must be a number or null, found 'low'"),
        ({"global": {"rouge_l": {"f1": [1]}}}, "'f1' must be a number or null"),
        ({"settings": "--seed 1"}, "'settings' must be an object or null, found '--seed 1'"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(make_record: Make, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoundRecord.from_json(make_record(1).to_json() | change)


def test_unknown_keys_of_a_newer_version_are_ignored(make_record: Make) -> None:
    record = make_record(1)
    assert RoundRecord.from_json(record.to_json() | {"new": 1}) == record


def test_weights_are_summarised_as_by_hand() -> None:
    effective, poisoned = weight_summary({0: 0.5, 1: 0.25, 2: 0.25}, {0: 1.0, 1: 0.0, 2: 0.1})
    assert effective == pytest.approx(1 / (0.25 + 0.0625 + 0.0625))
    assert poisoned == pytest.approx(0.75)


def test_a_client_without_a_share_counts_as_clean_where_others_have_one() -> None:
    assert weight_summary({7: 0.75, 8: 0.25}, {8: 1.0}).weight_on_poisoned == 0.25


def test_nothing_is_said_of_poison_where_nothing_is_known_of_the_rows() -> None:
    assert weight_summary({7: 1.0}, {}) == (1.0, None)


def test_no_weights_have_no_summary() -> None:
    assert weight_summary({}, {0: 1.0}) == (None, None)


@pytest.mark.parametrize("weights", [{0: -0.1, 1: 1.1}, {0: 0.0}, {0: math.nan}, {0: math.inf}])
def test_impossible_weights_are_refused(weights: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="must be finite, not negative"):
        weight_summary(weights, {})


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_effective_clients_lie_between_one_and_all_whatever_the_scale(values: list[float]) -> None:
    summary = weight_summary(dict(enumerate(values)), dict.fromkeys(range(len(values)), 1.0))
    assert summary.effective_clients is not None
    assert 1 - 1e-9 <= summary.effective_clients <= len(values) + 1e-9
    assert summary.weight_on_poisoned == pytest.approx(1.0)


def test_importing_the_trackers_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedbias_plugin.tracking.wandb_tracker, fedbias_plugin.progress\n"
        "import fedbias_plugin.study.compare, fedbias_plugin.cli.compare, fedbias_plugin.cli.doctor\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'wandb', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
