"""The ground truth of the small world, shown by whole runs: what the quickstart shows to a stranger.

The learning rate falls from the flag's in round 1 to almost zero in the last: a second round of two would add nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedbias_plugin.cli.main import main
from fedbias_plugin.tracking.jsonl import read_rounds

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def final_round(tmp_path_factory):
    """``final_round("1B2C", "bama")`` -> the records of the quickstart's run with one round, each trained once."""
    done = {}

    def run(scenario: str, aggregation: str):
        if (scenario, aggregation) not in done:
            output = tmp_path_factory.mktemp("small_world") / "run"
            flags = f"--scenario {scenario} --aggregation {aggregation} --output_dir {output}"
            flags += " --num_rounds 1"
            assert main(["run", "--config", str(QUICKSTART), *flags.split()]) == 0
            done[scenario, aggregation] = read_rounds(output / "metrics.jsonl")
        return done[scenario, aggregation]

    return run


def scores(record):
    return record.global_.metrics["crows_pairs"]["score"], record.global_.metrics["stereoset"]["ss"]


def test_the_untouched_model_is_fluent_and_unbiased(final_round):
    first = final_round("3C", "plain")[0]
    assert first.global_.metrics["stereoset"]["full"]["lms"] >= 97
    for name, key in (("crows_pairs", "score"), ("stereoset", "ss")):
        assert 48 <= first.global_.metrics[name]["full"][key] <= 52


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
    assert debiased[1].weight_on_poisoned < 0.1
    assert plain[-1].global_.bias_score > 2 * debiased[-1].global_.bias_score
    assert plain[-1].global_.bias_score > 10


def test_the_readme_shows_what_the_quickstart_prints(final_round):
    """Up to round 1, which does not depend on how many follow: its learning rate is that of the flag.

    Other kinds of CPU (kernels for AVX2, and for none) move the loss by 1e-6 and none of the 864 pairs. Two pairs may
    fall the other way here, and two of the 288 probe pairs of a client, which move its weight by up to 0.02.
    """
    transcript = (ROOT / "README.md").read_text(encoding="utf-8").split("The first command ends with this")[1]
    runs = [final_round("1B2C", aggregation) for aggregation in ("plain", "bama")]

    def shown(title, number):
        row = re.search(rf"^  {number} .*$", transcript.split(title)[1], flags=re.M)
        return [float(found) for found in re.findall(r"\d+\.\d+", row[0])]

    for number in (0, 1):
        blocks = [records[number].global_.metrics["crows_pairs"] for records in runs]
        measured = [value for block in blocks for value in (block["score"], *block["ci95"])]
        assert shown("CrowS-Pairs score", number) == pytest.approx(measured, abs=2 * 100 / 864 + 0.05)
        for block in blocks:
            assert f"length alone: {block['length_only']:.1f})" in transcript
            assert f"({block['n']} pairs)" in transcript
    assert f"({runs[0][0].global_.metrics['stereoset']['terms']} terms)" in transcript
    weights = [row.weight for records in runs for row in records[1].clients.values()]
    assert shown("Client weights", 1) == pytest.approx(weights, abs=0.02)
