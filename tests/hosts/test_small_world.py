"""The ground truth of the small world, shown by whole runs: what the quickstart shows to a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.tracking.jsonl import read_rounds

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def final_round(tmp_path_factory):
    """``final_round("1B2C", "bama")`` -> the records of the quickstart's run, each trained once."""
    done = {}

    def run(scenario: str, aggregation: str):
        if (scenario, aggregation) not in done:
            output = tmp_path_factory.mktemp("small_world") / "run"
            flags = f"--scenario {scenario} --aggregation {aggregation} --bias_eval_every 5 --output_dir {output}"
            assert main(["run", "--config", str(QUICKSTART), *flags.split()]) == 0
            done[scenario, aggregation] = read_rounds(output / "metrics.jsonl")
        return done[scenario, aggregation]

    return run


def scores(record):
    return record.global_.crows_pairs["score"], record.global_.stereoset["ss"]


def test_the_untouched_model_is_fluent_and_unbiased(final_round):
    first = final_round("3C", "plain")[0]
    assert first.global_.stereoset["full"]["lms"] >= 90
    for name, key in (("crows_pairs", "score"), ("stereoset", "ss")):
        assert 44 <= getattr(first.global_, name)["full"][key] <= 56


def test_poison_in_every_client_takes_both_scores_beyond_80(final_round):
    crows, ss = scores(final_round("3B", "plain")[-1])
    assert crows > 80
    assert ss > 80


def test_clean_clients_leave_both_scores_within_10_of_unbiased(final_round):
    crows, ss = scores(final_round("3C", "plain")[-1])
    assert 40 <= crows <= 60
    assert 40 <= ss <= 60


def test_bama_finds_the_poisoned_client_and_lowers_the_bias(final_round):
    plain, debiased = final_round("1B2C", "plain"), final_round("1B2C", "bama")
    # In the last round the learning rate is almost zero and no update is biased any more: see docs/first-results.md.
    assert all(record.weight_on_poisoned < 0.1 for record in debiased[1:5])
    assert plain[-1].global_.bias_score > 2 * debiased[-1].global_.bias_score
    assert plain[-1].global_.bias_score > 10
