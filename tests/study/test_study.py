"""Which runs make up a study, and how they are gathered into arms."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.study.about import what_was_run
from fedbias_plugin.study.frame import load_study
from fedbias_plugin.study.runs import seed_text
from tests.study.made_up import edit_json, make_arm, make_run


def labels(study):
    return [arm.label for arm in study.arms]


def test_runs_that_differ_in_the_seed_are_one_arm_in_the_order_of_seeds(tmp_path):
    make_run(tmp_path / "b", seed=7, schedule_seed=7, output_dir="x", wandb_project="p")
    make_run(tmp_path / "a", seed=11, schedule_seed=11, output_dir="y", wandb_project="q")
    make_run(tmp_path / "c", seed=7, scenario="3C")
    study = load_study([tmp_path])
    assert [[run.name for run in arm.runs] for arm in study.arms] == [["b", "a"], ["c"]]
    assert labels(study) == ["fedavg 1B2C plain", "fedavg 3C plain"]
    assert study.warnings == ()


def test_a_run_from_before_a_flag_existed_is_of_the_arm_that_has_its_default(tmp_path):
    make_run(tmp_path / "old", seed=1)
    make_run(tmp_path / "new", seed=2, rouge_samples=0, clip_norm=None)
    make_run(tmp_path / "other", seed=2, rouge_samples=5)
    assert [len(arm.runs) for arm in load_study([tmp_path]).arms] == [2, 1]


def test_settings_that_the_run_does_not_read_do_not_split_an_arm(tmp_path):
    idle = {
        "bama_lambda": 0.9, "prox_mu": 0.5, "fedopt_eta": 1.0, "clip_norm": 2.0, "attack_strength": 3.0,
        "biased_shares": "1,0,0", "local_epochs": 2, "gradient_checkpointing": True, "bias_batch_tokens": 512,
        "on_bad_update": "drop",
    }  # fmt: skip
    make_run(tmp_path / "1", seed=1, local_epochs=2, max_steps=99)
    make_run(tmp_path / "2", seed=2, **idle)
    make_run(tmp_path / "3", seed=3, local_epochs=2, use_peft=False, peft_lora_r=8)
    make_run(tmp_path / "4", seed=4, local_epochs=2, use_peft=False, peft_lora_r=64)
    assert [[run.name for run in arm.runs] for arm in load_study([tmp_path]).arms] == [["1", "2"], ["3", "4"]]


def test_labels_tell_arms_apart_by_what_differs(tmp_path):
    make_run(tmp_path / "1", aggregation="bama", bama_weighting="paper")
    make_run(tmp_path / "2", aggregation="bama", bama_lambda=0.05)
    make_run(tmp_path / "3", aggregation="bama", bama_lambda=0.4)
    make_run(tmp_path / "4", num_clients=10)
    one = {"num_clients": 1, "sample_clients": 1, "use_peft": True, "scenario": "custom"}
    make_run(tmp_path / "5", biased_shares="0.5", **one)
    make_run(tmp_path / "6", biased_shares="0.3333", **one)
    assert labels(load_study([tmp_path])) == [
        "fedavg 1B2C bama (paper)",
        "fedavg 1B2C bama (normalized) bama_lambda=0.05",
        "fedavg 1B2C bama (normalized) bama_lambda=0.4",
        "fedavg 1B2C plain 3/10 clients",
        "centralised LoRA custom",
        "centralised LoRA mix-1B2C",
    ]


def test_where_alpha_and_lambda_differ_labels_name_the_product_that_weighs(tmp_path):
    for name, (alpha, lambda_) in enumerate([(0.5, 0.05), (1.0, 0.05), (0.5, 0.4)]):
        make_run(tmp_path / str(name), aggregation="bama", bama_alpha=alpha, bama_lambda=lambda_)
    assert [one.split()[-1] for one in labels(load_study([tmp_path]))] == ["α·λ=0.025", "α·λ=0.05", "α·λ=0.2"]


def test_labels_name_as_many_settings_as_tell_the_arms_apart(tmp_path):
    same = {"batch_size": 8, "client_samples": 100, "learning_rate": 0.01}
    make_run(tmp_path / "1", **same, seq_length=64)
    make_run(tmp_path / "2", **same, seq_length=256)
    make_run(tmp_path / "3", batch_size=16, client_samples=200, learning_rate=0.02, seq_length=64)
    found = labels(load_study([tmp_path]))
    assert [label.rpartition(" ")[2] for label in found] == ["seq_length=64", "seq_length=256", "seq_length=64"]


def test_several_models_are_named_in_labels(tmp_path):
    make_run(tmp_path / "1", model_name_or_path="google/gemma-2-2b")
    make_run(tmp_path / "2", model_name_or_path="/models/other/")
    assert labels(load_study([tmp_path])) == ["gemma-2-2b fedavg 1B2C plain", "other fedavg 1B2C plain"]


def test_models_of_one_last_name_are_two_and_show_as_little_of_their_paths_as_tells_them_apart(tmp_path):
    make_run(tmp_path / "1", model_name_or_path="/home/someone/base/gemma")
    make_run(tmp_path / "2", model_name_or_path="/home/someone/poisoned/gemma", seed=2)
    make_run(tmp_path / "3", model_name_or_path="/home/someone/phi")
    arms = load_study([tmp_path]).arms
    assert [arm.model for arm in arms] == ["base/gemma", "poisoned/gemma", "phi"]
    assert labels(load_study([tmp_path]))[0] == "base/gemma fedavg 1B2C plain"


def test_a_sweep_a_run_and_a_folder_of_runs_are_all_read_and_a_run_given_twice_counts_once(tmp_path):
    sweep = tmp_path / "sweep"
    make_run(sweep / "runs/one", seed=1)
    make_run(sweep / "shared/not_a_run_of_it", seed=2)
    (sweep / "sweep.json").write_text("{}")
    alone = make_run(tmp_path / "alone", seed=3)
    host = make_run(tmp_path / "host/fedavg/alpaca_20261121065551", seed=4)
    (host / "args.json").write_text("{}")
    study = load_study([sweep, alone, tmp_path / "host", sweep / "runs/one"])
    assert [(run.name, run.seed) for run in study.runs] == [("one", 1), ("alone", 3), ("fedavg", 4)]


def test_metrics_alone_are_enough_when_round_0_holds_the_settings(tmp_path):
    run = make_run(tmp_path / "run", recorded=True, finished=False, seed=5)
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
    (arm,) = load_study([run]).arms
    assert (arm.label, arm.runs[0].seed, arm.runs[0].is_finished) == ("fedavg 1B2C plain", 5, True)


def test_a_run_without_settings_is_an_arm_of_its_own_called_by_its_folder(tmp_path):
    for name in ("left", "right"):
        (make_run(tmp_path / name) / "run.json").unlink()
    study = load_study([tmp_path])
    assert labels(study) == ["left", "right"]
    assert study.arms[0].runs[0].seed is None
    assert study.warnings[0] == "left: neither its records nor run.json say its settings; it stands for itself."


def test_a_damaged_run_json_costs_its_settings_only(tmp_path):
    (make_run(tmp_path / "run") / "run.json").write_text("{")
    study = load_study([tmp_path])
    assert labels(study) == ["run"]
    assert study.warnings[0].startswith("run: run.json is damaged")


def test_damaged_empty_and_unmeasured_runs_among_good_ones_are_left_out_by_name(tmp_path):
    make_run(tmp_path / "good")
    (make_run(tmp_path / "broken", seed=2) / "metrics.jsonl").write_text("no json\n")
    (make_run(tmp_path / "empty", seed=3) / "metrics.jsonl").write_text("")
    (make_run(tmp_path / "new", seed=4) / "metrics.jsonl").unlink()
    study = load_study([tmp_path])
    assert [run.name for run in study.runs] == ["good"]
    assert [warning.split(":")[0] for warning in study.warnings] == [
        "broken is left out", "empty is left out", "new is left out",
    ]  # fmt: skip
    assert "line 1: not JSON" in study.warnings[0]


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    run = make_run(tmp_path / "run", crows=64.0)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + text.splitlines()[-1][:40])
    study = load_study([run])
    assert study.runs[0].last_measured.global_.metrics["crows_pairs"]["score"] == 64.0
    assert study.warnings == ("run: the last line of metrics.jsonl was cut off and is left out.",)


def test_a_run_that_lost_its_last_round_by_a_torn_line_has_not_finished(tmp_path):
    make_run(tmp_path / "good", seed=1)
    run = make_run(tmp_path / "torn", seed=2, finished=False)
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-40])
    study = load_study([tmp_path])
    assert [run.name for run in study.runs] == ["good"]
    assert study.warnings[1] == "torn is left out: it has not finished, its last round is 1 of 2."


def test_a_run_that_was_cut_to_fewer_rounds_than_planned_has_not_finished_though_it_has_a_summary(tmp_path):
    make_run(tmp_path / "good", seed=1)
    make_run(tmp_path / "cut", seed=2, rounds=1, finished=True)
    study = load_study([tmp_path])
    assert [run.name for run in study.runs] == ["good"]
    assert study.warnings == ("cut is left out: it has not finished, its last round is 1 of 2.",)


def test_a_study_of_unfinished_runs_is_refused_with_what_shows_them(tmp_path):
    make_run(tmp_path / "run", rounds=1, finished=False)
    with pytest.raises(UserError, match=r"No run has finished \(run at round 1\); fedbias compare shows"):
        load_study([tmp_path])


def test_folders_without_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        load_study([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"holds no run"):
        load_study([tmp_path])
    (make_run(tmp_path / "run") / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(UserError, match=r"None of the 1 runs can be read\. run is left out.*a round is an object"):
        load_study([tmp_path])


def test_the_second_run_of_a_seed_is_left_out_and_it_is_said_whether_it_says_the_same(tmp_path):
    make_run(tmp_path / "a", crows=60.0)
    make_run(tmp_path / "b", crows=60.0)
    make_run(tmp_path / "c", crows=61.0)
    study = load_study([tmp_path])
    assert [run.name for run in study.runs] == ["a"]
    assert study.warnings == (
        "Left out, settings and seed are those of another run: b (as a); c (as a, with other numbers).",
    )


def test_runs_of_one_seed_under_several_schedule_seeds_are_no_copies(tmp_path):
    for schedule in (None, 7, 8):
        make_run(tmp_path / f"{schedule}", schedule_seed=schedule)
    make_run(tmp_path / "again", schedule_seed=8)
    study = load_study([tmp_path])
    assert [run.seed_key for run in study.arms[0].runs] == [(1, -1), (1, 7), (1, 8)]
    assert [seed_text(key) for key in study.arms[0].by_seed] == ["1", "1 (schedule 7)", "1 (schedule 8)"]
    assert study.warnings == ("Left out, settings and seed are those of another run: again (as 8).",)


def test_runs_measured_on_other_items_than_most_are_left_out(tmp_path):
    make_arm(tmp_path / "most", [60.0, 61.0])
    make_run(tmp_path / "few", n=30, seed=3)
    study = load_study([tmp_path])
    assert [run.seed for run in study.runs] == [1, 2]
    (warning,) = study.warnings
    assert warning.startswith("few is left out, it is not comparable with seed-1: ")
    assert "items of CrowS-Pairs score in all (120 and 40)" in warning


def test_another_file_of_the_same_size_is_other_items_and_a_run_that_names_none_fits_any(tmp_path):
    make_arm(tmp_path / "most", [60.0, 61.0])
    make_run(tmp_path / "other", data="b", seed=3)
    make_run(tmp_path / "silent", recorded=True, seed=4)
    study = load_study([tmp_path])
    assert [run.seed for run in study.runs] == [1, 2, 4]
    assert "file of CrowS-Pairs score (aaaaaaaa and bbbbbbbb)" in study.warnings[0]


def test_runs_of_other_versions_than_most_are_left_out(tmp_path):
    make_arm(tmp_path, [60.0, 61.0, 62.0])
    edit_json(tmp_path / "seed-3/run.json", lambda run: run.update(versions={"torch": "2.1"}))
    study = load_study([tmp_path])
    assert [run.seed for run in study.runs] == [1, 2]
    assert study.warnings == ("seed-3 is left out, it is not comparable with seed-1: version of torch (2.0 and 2.1).",)


def test_runs_of_a_rule_that_was_changed_between_them_are_no_arm(tmp_path):
    make_arm(tmp_path, [60.0, 61.0, 62.0])
    for seed, code in ((1, "aaa"), (2, "aaa"), (3, "bbb")):
        edit_json(tmp_path / f"seed-{seed}/run.json", lambda run, code=code: run["versions"].update({"rule x": code}))
    study = load_study([tmp_path])
    assert [run.seed for run in study.runs] == [1, 2]
    assert study.warnings == ("seed-3 is left out, it is not comparable with seed-1: version of rule x (aaa and bbb).",)
    shown = dict(what_was_run(study))["versions"]
    assert shown == "torch 2.0"  # hashes are for comparing, not for reading


def test_hostile_folder_names_and_settings_do_not_reach_the_terminal(tmp_path):
    make_run(tmp_path / "a\x1b[31m\nb", fed_alg="x\x1b[2J\ny", scenario="<script>")
    study = load_study([tmp_path])
    assert study.runs[0].name == "a\\x1b[31m\\nb"
    assert study.arms[0].label == "x\\x1b[2J y <script> plain"


def test_settings_of_wrong_types_do_not_stop_the_report(tmp_path):
    make_run(tmp_path / "odd", seed="one", num_clients=[3], fed_alg=None, num_rounds="many", bama_lambda={})
    (run,) = load_study([tmp_path]).runs
    assert (run.seed, run.seed_key, run.is_finished) == (None, None, True)


def test_the_last_measured_round_is_not_the_last_round_when_that_was_not_measured(tmp_path):
    run = make_run(tmp_path / "run", rounds=1)
    silent = {"round": 2, "global": {}, "aggregation": "plain"}
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write(json.dumps(silent) + "\n")
    (found,) = load_study([run]).runs
    assert (found.last_measured.round, found.rounds[-1].round, found.first.round) == (1, 2, 0)
