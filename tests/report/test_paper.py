"""The facts file of the paper: complete, strict, and without a number that nobody has read in the paper."""

from __future__ import annotations

import pytest
import yaml

from fedbias_plugin.configs_folder import configs_folder
from fedbias_plugin.errors import UserError
from fedbias_plugin.report.claims import judge_claims
from fedbias_plugin.report.paper import CLAIMS, MODELS, load_paper, paper_model, paper_note
from fedbias_plugin.report.study import load_study
from tests.report.made_runs import make_arm

OURS = configs_folder() / "paper_results.yaml"


@pytest.fixture
def facts():
    return yaml.safe_load(OURS.read_text())


@pytest.fixture
def load(tmp_path):
    def load(content):
        path = tmp_path / "facts.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return load_paper(path)

    return load


def leaves(block):
    return [leaf for value in block.values() for leaf in leaves(value)] if isinstance(block, dict) else [block]


def test_our_file_has_every_cell_and_no_number_and_says_so(facts):
    # Table 1: original + 3 algorithms x 4 scenarios; Table 2: 2 + 4; Table 3: 3 x 2; two measures, five models.
    assert leaves(facts["tables"]) == [None] * (2 * 5 * (13 + 6 + 6))
    paper = load_paper()
    assert paper.cells == {}
    assert set(paper.claims) == set(CLAIMS)
    assert paper.source["doi"] == "10.1609/aaai.v40i46.41316"
    assert "null" in paper.source["status"]
    assert "could not be read by us" in paper_note(paper)


def test_a_number_that_was_filled_in_is_found_by_the_name_of_the_model(facts, load):
    facts["tables"]["table1"]["gemma2_2b"]["fedavg"]["3B"]["delta_ss"] = 4.25
    facts["tables"]["table1"]["gemma2_2b"]["original"]["delta_crows"] = 3
    facts["tables"]["table3"]["phi3_mini"]["fedprox"]["with_bama"]["delta_crows"] = 0.5
    paper = load(facts)
    assert paper.cell("table1", "google/gemma-2-2b-it", ("fedavg", "3B"), "delta_ss") == 4.25
    assert paper.cell("table1", "gemma2_2b", ("original",), "delta_crows") == 3.0
    assert paper.cell("table3", "Phi-3-mini-4k-instruct", ("fedprox", "with_bama"), "delta_crows") == 0.5
    assert paper.cell("table1", "gemma-2-9b", ("fedavg", "3B"), "delta_ss") is None
    assert paper.cell("table1", "tiny", ("fedavg", "3B"), "delta_ss") is None
    assert paper_note(paper) == ""


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("meta-llama/Meta-Llama-3-8B", "llama3_8b"), ("mistralai/Mistral-7B-v0.1", "mistral_7b"),
        ("microsoft/Phi-3-mini-4k-instruct", "phi3_mini"), ("google/gemma-2-9b", "gemma2_9b"),
        ("google/gemma-2-27b", None), ("meta-llama/Llama-3.2-1B", None), ("meta-llama/Llama-2-7b-hf", None),
        *((name, name) for name in MODELS),
    ],
)  # fmt: skip
def test_hub_names_are_matched_to_the_paper_s_models(name, model):
    assert paper_model(name) == model


@pytest.mark.parametrize("value", ["4.2", True, [1], float("nan"), float("inf")])
def test_a_cell_is_a_number_or_null(facts, load, value):
    facts["tables"]["table2"]["mistral_7b"]["centralised_full"]["delta_crows"] = value
    with pytest.raises(UserError, match=r"mistral_7b, centralised_full, delta_crows: must be a number"):
        load(facts)


def test_a_score_in_place_of_a_delta_is_refused(facts, load):
    facts["tables"]["table2"]["mistral_7b"]["centralised_full"]["delta_crows"] = 61.2
    with pytest.raises(UserError, match=r"lies between 0 and 50, found 61\.2"):
        load(facts)


def test_unknown_and_missing_keys_are_refused_with_the_nearest_name(facts, load):
    facts["tables"]["table1"]["gemma2_2b"]["fedavgg"] = facts["tables"]["table1"]["gemma2_2b"].pop("fedavg")
    with pytest.raises(UserError, match=r"table1, gemma2_2b: 'fedavgg' is unknown\. Did you mean 'fedavg'\?"):
        load(facts)
    del facts["tables"]["table1"]["gemma2_2b"]["fedavgg"]
    with pytest.raises(UserError, match=r"table1, gemma2_2b: fedavg is missing"):
        load(facts)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "source: {}", "\x00"])
def test_files_that_are_no_facts_are_refused_by_name(load, text):
    with pytest.raises(UserError, match=r"facts\.yaml"):
        load(text)


def judged(folder, claim):
    (found,) = [one for one in judge_claims(load_study([folder]), load_paper()) if one.claim == claim]
    return found


def test_bama_agrees_when_all_seeds_and_algorithms_get_less_biased(tmp_path):
    for algorithm in ("fedavg", "fedadam"):
        make_arm(tmp_path / f"{algorithm}_host", [60.0, 61.0, 62.0], [56.0, 57.0, 58.0], fed_alg=algorithm)
        wanted = {"fed_alg": algorithm, "aggregation": "bama", "bama_weighting": "paper"}
        make_arm(tmp_path / f"{algorithm}_bama", [58.0, 58.5, 60.5], [55.0, 56.5, 57.0], **wanted)
    found = judged(tmp_path, "bama_reduces")
    assert (found.verdict, found.variant, found.pairs) == ("agrees", "paper", 2)
    # Differences -2, -2.5, -1.5 of Deltas 10, 11, 12: mean -2, sd 0.5, t(2) = 4.3027.
    half = 4.302653 * 0.5 / 3**0.5
    assert found.crows.difference.ci95 == pytest.approx((-2 - half, -2 + half))
    assert found.crows.reason == "-2.00 [-3.24, -0.76] points (-18% of 11.00)."


def test_bama_cannot_be_told_when_one_algorithm_goes_the_other_way(tmp_path):
    for algorithm, crows in (("fedavg", [50.0, 51.0, 52.0]), ("fedadam", [61.0, 62.0, 63.1])):
        make_arm(tmp_path / f"{algorithm}_host", [60.0, 61.0, 62.0], fed_alg=algorithm)
        make_arm(tmp_path / f"{algorithm}_bama", crows, fed_alg=algorithm, aggregation="bama")
    found = judged(tmp_path, "bama_reduces")
    assert found.crows.verdict == "cannot be told"
    assert "the other way for fedadam" in found.crows.reason
    assert found.ss.reason == "+0.00 [+0.00, +0.00] points (+0% of 5.00), an interval around 0."


def test_a_third_of_biased_data_is_judged_on_the_score_and_on_either_side_of_50(tmp_path):
    # Towards the stereotype by 5, 4.8 and 4.9 in the three seeds, while Delta falls.
    make_arm(tmp_path / "clean", [44.0, 44.5, 45.2], scenario="3C")
    make_arm(tmp_path / "third", [49.0, 49.3, 50.1], scenario="1B2C")
    found = judged(tmp_path, "third_biased_matters")
    assert (found.shown, found.crows.difference.mean) == ("agrees on CrowS-Pairs only", pytest.approx(4.9))
    half = 4.302653 * 0.1 / 3**0.5
    assert found.crows.reason == f"+4.90 [{4.9 - half:+.2f}, {4.9 + half:+.2f}] points of score."


def test_a_third_that_moves_the_score_down_is_no_proof_and_no_contradiction(tmp_path):
    make_arm(tmp_path / "third", [55.0, 56.0, 57.1], scenario="1B2C", lms=55.0)
    make_arm(tmp_path / "clean", [58.0, 59.0, 60.0], scenario="3C", lms=55.0)
    found = judged(tmp_path, "third_biased_matters")
    assert (found.verdict, found.crows.verdict, found.ss.verdict) == ("cannot be told",) * 3
    assert found.crows.reason.endswith("points of score, an influence away from the stereotype.")
    assert found.ss.is_unsound
    assert found.ss.reason == "LMS below 60, so that SS says little."


def test_a_finding_on_delta_cannot_be_told_from_scores_below_50(tmp_path):
    make_arm(tmp_path / "mixed", [52.0, 53.0, 54.1], scenario="mix-1B2C")
    make_arm(tmp_path / "apart", [49.0, 49.5, 50.2], scenario="1B2C")  # 49.57 on average
    found = judged(tmp_path, "mixed_higher")
    assert (found.verdict, found.crows.verdict) == ("cannot be told", "cannot be told")
    assert found.crows.difference.mean == pytest.approx((1.0 + 2.5 + 3.9) / 3)
    assert "scores lie below 50 in 1 of 1 pairs: there a larger Delta is more anti-stereotype" in found.crows.reason


def test_mixed_rows_disagree_when_they_give_less_bias_than_segregated_ones(tmp_path):
    make_arm(tmp_path / "mixed", [55.0, 56.0, 57.1], scenario="mix-1B2C", lms=55.0)
    make_arm(tmp_path / "apart", [58.0, 59.0, 60.0], scenario="1B2C", lms=55.0)
    assert judged(tmp_path, "mixed_higher").shown == "disagrees on CrowS-Pairs only"


@pytest.mark.parametrize(
    ("stereo", "lms", "shown"),
    [
        ([60.0, 57.0, 57.0], 90.0, "cannot be told"),  # +5, +2, +2 - 2: up on average, an interval around 0
        ([54.0, 57.0, 52.0], 90.0, "agrees on CrowS-Pairs only"),  # -1, +2, -3
        ([60.0, 57.0, 57.0], 55.0, "agrees on CrowS-Pairs only"),  # LMS too low for SS to object
        ([54.0, 53.9, 53.8], 90.0, "agrees"),
    ],
)
def test_one_benchmark_decides_only_where_the_other_does_not_point_the_other_way(tmp_path, stereo, lms, shown):
    make_arm(tmp_path / "host", [60.0, 61.0, 62.0], [55.0, 55.0, 55.0], lms=lms)
    make_arm(tmp_path / "bama", [59.0, 60.01, 61.0], stereo, lms=lms, aggregation="bama")
    found = judged(tmp_path, "bama_reduces")
    assert found.crows.verdict == "agrees"
    assert found.shown == shown
    assert found.ss.reason.endswith("It points the other way.") == (shown == "cannot be told")


def test_arms_that_differ_in_other_settings_decide_nothing(tmp_path):
    make_arm(tmp_path / "host", [60.0, 61.0, 62.0], learning_rate=1e-4, client_samples=1000)
    bama = {"aggregation": "bama", "learning_rate": 1e-6, "client_samples": 50}
    make_arm(tmp_path / "bama", [52.0, 53.0, 54.1], **bama)
    found = judged(tmp_path, "bama_reduces")
    assert (found.verdict, found.pairs, found.crows.difference) == ("cannot be told", 0, None)
    assert found.crows.reason == "no pair of arms agrees in all other settings."
    assert found.notes[0].endswith("differ in client_samples (1000 and 50), learning_rate (0.0001 and 1e-06).")
    make_arm(tmp_path / "slow", [55.0, 56.0, 57.0], learning_rate=1e-6, client_samples=50)
    found = judged(tmp_path, "bama_reduces")
    assert (found.verdict, found.pairs) == ("agrees", 1)
    assert found.crows.difference.mean == pytest.approx((-3.0 - 3.0 - 2.9) / 3)
    assert "not shown: fedavg 1B2C plain" in found.notes[0]


def test_one_seed_tells_nothing_and_contradicting_benchmarks_neither(tmp_path):
    make_arm(tmp_path / "one/mixed", [70.0], scenario="mix-1B2C")
    make_arm(tmp_path / "one/apart", [55.0], scenario="1B2C")
    found = judged(tmp_path / "one", "mixed_higher")
    assert (found.verdict, found.crows.difference.mean) == ("cannot be told", 15.0)
    assert "one seed" in found.crows.reason
    make_arm(tmp_path / "two/mixed", [70.0, 71.0, 72.1], [52.0, 52.0, 52.1], scenario="mix-1B2C")
    make_arm(tmp_path / "two/apart", [55.0, 56.0, 57.0], [56.0, 56.0, 56.0], scenario="1B2C")
    found = judged(tmp_path / "two", "mixed_higher")
    assert (found.verdict, found.crows.verdict, found.ss.verdict) == ("cannot be told", "agrees", "disagrees")


def test_fedadam_is_held_against_each_other_algorithm_on_biased_scenarios_only(tmp_path):
    for algorithm, crows in (("fedadam", [52.0, 53.0]), ("fedavg", [60.0, 61.1]), ("fedprox", [58.0, 59.0])):
        make_arm(tmp_path / algorithm, crows, fed_alg=algorithm, scenario="2B1C")
        make_arm(tmp_path / f"{algorithm}_clean", [90.0, 91.0] if algorithm == "fedadam" else crows,
                 fed_alg=algorithm, scenario="3C")  # fmt: skip
    found = judged(tmp_path, "fedadam_lowest")
    assert found.pairs == 2
    # (-8 - 6) / 2 and (-8.1 - 6) / 2
    assert found.crows.difference.mean == pytest.approx(-7.025)
    assert found.crows.verdict == "agrees"


def test_a_study_without_the_runs_of_a_claim_says_nothing_of_it(tmp_path):
    make_arm(tmp_path, [60.0, 61.0], scenario="3B")
    assert judge_claims(load_study([tmp_path]), load_paper()) == []


def test_seeds_that_changed_nothing_tell_nothing(tmp_path):
    make_arm(tmp_path / "mixed", [70.0, 70.0], scenario="mix-1B2C")
    make_arm(tmp_path / "apart", [55.0, 55.0], scenario="1B2C")
    found = judged(tmp_path, "mixed_higher")
    assert (found.crows.verdict, found.crows.difference.mean) == ("cannot be told", 15.0)
    assert "every seed alike" in found.crows.reason
