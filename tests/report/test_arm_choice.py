"""Which arms are put beside each other."""

from __future__ import annotations

import pytest

from fedbias_plugin.report.arm_choice import (
    CENTRALISED,
    WEIGHTING,
    agreeing,
    difference_note,
    differences,
    original_models,
    pick,
    pick_pair,
)
from fedbias_plugin.report.study import load_study
from tests.report.made_runs import make_arm, make_run

RATES = {"learning_rate": 1e-4}, {"learning_rate": 1e-6}


@pytest.fixture
def arms(tmp_path):
    def arms(**changed):
        for name, changes in changed.items():
            make_run(tmp_path / name, **changes)
        found = {arm.runs[0].name: arm for arm in load_study([tmp_path]).arms}
        return [found[name] for name in changed]

    return arms


def test_arms_differ_in_what_both_read_beyond_what_may_vary(arms):
    bama = {"aggregation": "bama", "bama_lambda": 0.4}
    host, weighed, other = arms(host={}, weighed=bama, other={**bama, "learning_rate": 1e-6, "client_samples": 50})
    assert differences(host, weighed, WEIGHTING) == []
    assert differences(host, weighed, ()) == ["aggregation"]
    assert difference_note(host, weighed, WEIGHTING) is None
    assert difference_note(host, other, WEIGHTING) == (
        "Not compared, other settings too: fedavg 1B2C plain and fedavg 1B2C bama (normalized) client_samples=50, "
        "learning_rate=1e-06 differ in client_samples (300 and 50), learning_rate (2e-05 and 1e-06)."
    )


def test_a_setting_that_only_one_algorithm_reads_is_no_difference_but_one_that_both_read_is(arms):
    fedavg, fedprox, bama = arms(
        fedavg={}, fedprox={"fed_alg": "fedprox", "prox_mu": 0.1},
        bama={"fed_alg": "fedprox", "prox_mu": 0.5, "aggregation": "bama"},
    )  # fmt: skip
    assert differences(fedavg, fedprox, {"fed_alg"}) == []
    assert differences(fedprox, bama, WEIGHTING) == ["prox_mu"]


def test_centralised_training_may_differ_in_rows_and_rate_but_not_in_rounds(arms):
    one = {"num_clients": 1, "sample_clients": 1, "scenario": "custom", "biased_shares": "1.0", "use_peft": False}
    adam, full, longer = arms(
        adam={"fed_alg": "fedadam"}, full={**one, "client_samples": 900, "learning_rate": 1e-3, "dtype": "bfloat16"},
        longer={**one, "num_rounds": 1},
    )  # fmt: skip
    assert differences(adam, full, CENTRALISED) == []
    assert differences(adam, longer, CENTRALISED) == ["num_rounds"]


def test_the_partner_that_agrees_is_preferred_to_one_of_more_seeds(tmp_path):
    make_arm(tmp_path / "host_fast", [60.0, 61.0, 62.0], **RATES[0])
    make_arm(tmp_path / "host_slow", [55.0, 56.0], **RATES[1])
    make_arm(tmp_path / "bama_slow", [54.0, 55.0], aggregation="bama", **RATES[1])
    found = load_study([tmp_path]).arms
    notes = []
    one, other = pick_pair(found, notes, WEIGHTING, {"aggregation": "plain"}, {"aggregation": "bama"})
    assert [arm.settings["learning_rate"] for arm in (one, other)] == [1e-6, 1e-6]
    assert notes == [
        "Of 2 arms that fit one place, fedavg 1B2C plain learning_rate=1e-06 is shown; not shown: fedavg 1B2C plain "
        "learning_rate=0.0001."
    ]
    assert pick(found, [], WEIGHTING, aggregation="plain") is one  # it has a partner
    assert pick(found, [], WEIGHTING, beside=other, aggregation="plain") is one
    assert pick_pair(found, [], WEIGHTING, {"aggregation": "krum"}, {"aggregation": "bama"}) is None


def test_arms_are_gathered_into_groups_that_agree(arms):
    found = arms(a={}, b={"aggregation": "bama"}, c=RATES[1], d={"aggregation": "bama", **RATES[1]})
    assert [[arm.runs[0].name for arm in group] for group in agreeing(found, WEIGHTING)] == [["a", "b"], ["c", "d"]]


def test_the_untouched_model_stands_once_for_each_way_of_loading_it(tmp_path):
    make_arm(tmp_path / "whole", [60.0, 61.0], original=(52.0, 51.0))
    make_arm(tmp_path / "other", [60.0], original=(52.0, 51.0), scenario="3C")
    make_arm(tmp_path / "small", [60.0], original=(58.0, 57.0), load_in_4bit=True, dtype="bfloat16", scenario="3C")
    found = list(original_models(load_study([tmp_path]).arms, "tiny").values())
    assert {arm.label: len(arm.runs) for arm in found} == {
        "original model, float32": 2, "original model, bfloat16 in 4 bits": 1,
    }  # fmt: skip
