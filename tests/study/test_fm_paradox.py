"""The study of worst clients under label skew: its arms are what they are called, its file asks of what is there."""

import math

from fedbias_plugin.configs_folder import find_config
from fedbias_plugin.study.frame import load_study, possible
from fedbias_plugin.study.settings import facts
from fedbias_plugin.study.study_file import find_study_file, fits, load_study_file
from fedbias_plugin.sweep.configs import load_experiment, load_model
from fedbias_plugin.sweep.plan import plan_runs
from tests.study.made_up import edit_json, make_arm

TINY = load_model(find_config("models", "tiny", "--model"))
RUNS = plan_runs([load_experiment(find_config("experiments", "fm_paradox", "experiment"))], TINY, seeds=[1])


def test_the_arms_are_two_models_and_what_lies_between_them_at_four_alphas_under_two_weightings():
    arms = {
        (s["classifier"], bool(s["use_peft"]), bool(s.get("random_weights")), s["dirichlet_alpha"], s["aggregation"])
        for s in (run.settings for run in RUNS)
    }
    models = {("textcnn", False, False), ("lm", True, False), ("lm", True, True), ("lm", False, False)}
    assert arms == {
        (*model, alpha, rule) for model in models for alpha in (0.1, 0.3, 0.5, 1.0) for rule in ("plain", "fedavgw")
    }
    for run in RUNS:
        assert (run.settings["client_samples"], run.settings["client_test_fraction"]) == (1000, 0.2)
        assert (run.settings["num_rounds"], run.settings["num_clients"], run.settings["max_steps"]) == (30, 10, 10)
        assert "local_epochs" not in run.settings or run.settings["local_epochs"] is None
    rates = {(s["classifier"], bool(s["use_peft"])): s["learning_rate"] for s in (run.settings for run in RUNS)}
    assert rates == {("textcnn", False): 1e-3, ("lm", True): 4e-3, ("lm", False): 1e-3}


def test_every_comparison_has_arms_on_both_sides_and_only_names_that_there_are():
    file = load_study_file(find_study_file([], "fm_paradox"))
    file.check_names((), ())
    known = [facts(run.settings, run.settings["aggregation"], "tiny") for run in RUNS]
    for comparison in file.comparisons:
        own = [one for one in known if fits(one, comparison.where)]
        for side in (comparison.from_, comparison.to):
            assert sum(fits(one, side) for one in own) >= 4, comparison.id


def test_seeds_that_deal_other_test_rows_and_draw_other_heads_are_one_arm(tmp_path):
    make_arm(tmp_path / "a", [60.0, 61.0], task="classify")
    for seed in (1, 2):
        own = {"value": 0.5, "ideal": None, "n": 90 + seed, "clients": {"0": {"value": 0.5, "n": 90 + seed}}}

        def add(line, own=own):
            line["global"]["client_accuracy"] = own

        edit_json(tmp_path / f"a/seed-{seed}/metrics.jsonl", add)

        def head(run, seed=seed):
            run["model"] = {"fingerprint": f"{seed}" * 8}

        edit_json(tmp_path / f"a/seed-{seed}/run.json", head)
    study = load_study([tmp_path])
    assert [len(arm.runs) for arm in study.arms] == [2]
    assert study.warnings == ()


def test_a_difference_of_a_gap_may_be_negative():
    assert possible("client_accuracy/mean_worst/change") == (-math.inf, math.inf)
    assert possible("client_accuracy/worst/change") == (-1.0, 1.0)
    assert possible("client_accuracy/worst") == (0.0, 1.0)
    assert possible("gender_perplexity/l1_gap/change") == (-math.inf, math.inf)
