"""From files to runs: precedence, names, centralised runs, and runs that cannot be told apart."""

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.sweep.configs import Experiment, ModelConfig
from fedbias_plugin.sweep.plan import plan_runs

TINY = ModelConfig(
    "tiny", "tiny", {"model_name_or_path": "tiny", "use_peft": True, "client_samples": 40, "seq_length": 64}
)


def experiment(name="mine", seeds=(1, 2), arguments=None, **axes):
    return Experiment(name, name, seeds, ({key: tuple(values) for key, values in axes.items()},), arguments or {})


def test_every_combination_is_run_with_every_seed_the_first_seed_first():
    runs = plan_runs([experiment(fed_alg=["fedavg", "scaffold"], scenario=["3B", "1B2C"])], TINY)
    assert [run.name for run in runs] == [
        "fedavg_3B_plain_seed-1",
        "fedavg_1B2C_plain_seed-1",
        "scaffold_3B_plain_seed-1",
        "scaffold_1B2C_plain_seed-1",
        "fedavg_3B_plain_seed-2",
        "fedavg_1B2C_plain_seed-2",
        "scaffold_3B_plain_seed-2",
        "scaffold_1B2C_plain_seed-2",
    ]
    assert [run.settings["seed"] for run in runs] == [1] * 4 + [2] * 4
    assert all("seed" in run.flags and "output_dir" not in run.flags for run in runs)


def test_the_command_line_wins_over_the_experiment_and_that_over_the_model():
    mine = experiment(arguments={"client_samples": 50, "num_rounds": 4}, scenario=["1B2C"], seeds=(1,))
    (run,) = plan_runs([mine], TINY, {"num_rounds": "3"})
    assert run.settings["seq_length"] == 64
    assert run.settings["client_samples"] == 50
    assert run.settings["num_rounds"] == 3


def test_names_hold_what_varies_and_is_not_as_by_default():
    mine = experiment(num_clients=[3, 10], bama_lambda=[0.2, 0.8], aggregation=["bama"], seeds=(1,))
    assert [run.name for run in plan_runs([mine], TINY)] == [
        "fedavg_1B2C_bama_seed-1",
        "fedavg_1B2C_bama_bama_lambda-0.8_seed-1",
        "fedavg_1B2C_bama_num_clients-10_seed-1",
        "fedavg_1B2C_bama_bama_lambda-0.8_num_clients-10_seed-1",
    ]


@pytest.mark.parametrize(("scenario", "share"), [("3B", 1.0), ("3C", 0.0), ("2B1C", 2 / 3), ("mix-1B2C", 1 / 3)])
def test_a_centralised_run_has_one_client_with_the_rows_of_all(scenario, share):
    mine = experiment(centralised=[True], scenario=[scenario], seeds=(1,))
    (run,) = plan_runs([mine], TINY)
    assert run.name == f"centralised_lora_{scenario}_seed-1"
    assert run.settings["num_clients"] == run.settings["sample_clients"] == 1
    assert run.settings["client_samples"] == 3 * 40
    assert run.settings["scenario"] == "custom"
    assert float(run.settings["biased_shares"]) == pytest.approx(share, abs=1e-6)


def test_full_finetuning_takes_the_models_own_settings_for_it_and_no_adapter():
    quantised = ModelConfig(
        "big",
        "big",
        {"model_name_or_path": "x/y", "use_peft": True, "load_in_8bit": True, "peft_lora_r": 32, "learning_rate": 5e-5},
        full_finetuning={"learning_rate": 1e-5},
    )
    full, lora = plan_runs([experiment(use_peft=[False, True], centralised=[True], seeds=(1,))], quantised)
    assert (full.name, lora.name) == (
        "centralised_full_1B2C_seed-1",
        "centralised_lora_1B2C_seed-1",
    )
    assert (full.settings["use_peft"], full.settings["load_in_8bit"], full.settings["learning_rate"]) == (
        False,
        False,
        1e-5,
    )
    assert (lora.settings["use_peft"], lora.settings["load_in_8bit"], lora.settings["learning_rate"]) == (
        True,
        True,
        5e-5,
    )
    assert lora.settings["peft_lora_r"] == 32


def test_nobody_can_be_weighed_in_a_centralised_run():
    mine = experiment(centralised=[True], aggregation=["bama"])
    with pytest.raises(
        UserError, match=r"mine, centralised True, aggregation bama, seed 1: a centralised run has nobody to weigh"
    ):
        plan_runs([mine], TINY)


def test_what_is_varied_cannot_be_given_too():
    with pytest.raises(UserError, match="--scenario is what mine varies"):
        plan_runs([experiment(scenario=["3B"])], TINY, {"scenario": "3C"})


def test_flags_are_checked_for_every_run_before_any_is_started():
    with pytest.raises(UserError, match=r"mine, num_clients 2, centralised True, seed 1: .*needs at least 3 clients"):
        plan_runs([experiment(num_clients=[3, 2], centralised=[True])], TINY)
    with pytest.raises(UserError, match=r"--fed_alg 'fedavgg'"):
        plan_runs([experiment(fed_alg=["fedavgg"])], TINY)


def test_two_experiments_may_not_mean_different_runs_by_one_name():
    one, other = experiment("one", scenario=["3B"]), experiment("other", arguments={"num_rounds": 2}, scenario=["3B"])
    with pytest.raises(
        UserError, match=r"one and other both have a run fedavg_3B_plain_seed-1.*num_rounds 5 / 2.*--output"
    ):
        plan_runs([one, other], TINY)


def test_other_seeds_can_be_given():
    runs = plan_runs([experiment(scenario=["3B"])], TINY, seeds=[7])
    assert [run.settings["seed"] for run in runs] == [7]
    with pytest.raises(UserError, match="--seeds: a seed stands twice"):
        plan_runs([experiment(scenario=["3B"])], TINY, seeds=[7, 7])


def test_what_an_experiment_or_the_command_line_says_of_full_finetuning_wins_over_the_model():
    model = ModelConfig(
        "m", "m", {"model_name_or_path": "x/y", "use_peft": True}, {"learning_rate": 1e-5, "bf16": True}
    )
    grid = experiment(use_peft=[False], learning_rate=[1e-4, 1e-6], scenario=["3C"], seeds=(1,))
    assert [run.settings["learning_rate"] for run in plan_runs([grid], model)] == [1e-4, 1e-6]
    fixed = experiment(arguments={"use_peft": False, "learning_rate": 7e-5}, scenario=["3C"], seeds=(1,))
    (run,) = plan_runs([fixed], model)
    assert (run.settings["learning_rate"], run.settings["bf16"]) == (7e-5, True)


def test_use_peft_on_the_command_line_decides_which_settings_of_the_model_hold():
    model = ModelConfig(
        "m",
        "m",
        {"model_name_or_path": "x/y", "use_peft": True, "load_in_8bit": True, "learning_rate": 5e-5},
        {"learning_rate": 1e-5},
    )
    lora = experiment(scenario=["3C"], seeds=(1,))
    (run,) = plan_runs([lora], model, {"use_peft": "false"})
    assert (run.settings["use_peft"], run.settings["load_in_8bit"], run.settings["learning_rate"]) == (
        False,
        False,
        1e-5,
    )
    full = experiment(arguments={"use_peft": False}, scenario=["3C"], seeds=(1,))
    (run,) = plan_runs([full], model, {"use_peft": "true"})
    assert (run.settings["use_peft"], run.settings["load_in_8bit"], run.settings["learning_rate"]) == (True, True, 5e-5)


def test_a_model_that_says_nothing_of_adapters_trains_every_weight_as_fedbias_run_does():
    model = ModelConfig("m", "m", {"model_name_or_path": "x/y"}, {"learning_rate": 1e-5})
    (run,) = plan_runs([experiment(scenario=["3C"], seeds=(1,))], model)
    assert (run.settings["use_peft"], run.settings["learning_rate"]) == (False, 1e-5)


def test_equal_values_written_differently_are_one_run():
    runs = plan_runs([experiment(aggregation=["bama"], bama_lambda=["0.2", 0.2, "0.40", 0.4], seeds=(1,))], TINY)
    assert [run.name for run in runs] == ["fedavg_1B2C_bama_seed-1", "fedavg_1B2C_bama_bama_lambda-0.4_seed-1"]


def test_an_axis_that_full_finetuning_has_no_use_for_does_not_stop_the_plan():
    runs = plan_runs([experiment(use_peft=[False, True], peft_lora_r=[4], scenario=["3C"], seeds=(1,))], TINY)
    assert [run.settings["use_peft"] for run in runs] == [False, True]


def test_steps_on_the_command_line_take_the_place_of_epochs_in_the_experiment():
    mine = experiment(arguments={"local_epochs": 2}, scenario=["3C"], seeds=(1,))
    (run,) = plan_runs([mine], TINY, {"max_steps": "5"})
    assert (run.settings["max_steps"], run.settings["local_epochs"]) == (5, None)


def test_a_centralised_run_takes_as_many_steps_as_all_clients_did():
    mine = experiment(arguments={"max_steps": 10}, centralised=[True], scenario=["3C"], seeds=(1,))
    (run,) = plan_runs([mine], TINY)
    assert (run.settings["max_steps"], run.settings["local_epochs"]) == (30, None)


def test_a_centralised_run_takes_custom_shares_and_refuses_a_federation_of_some():
    mine = experiment(centralised=[True], scenario=["custom"], biased_shares=["1,0,0"], seeds=(1,))
    (run,) = plan_runs([mine], TINY)
    assert float(run.settings["biased_shares"]) == pytest.approx(1 / 3, abs=1e-6)
    with pytest.raises(UserError, match="a centralised run has the rows of all clients"):
        plan_runs([experiment(centralised=[True], num_clients=[10], sample_clients=[3])], TINY)


def test_a_long_name_is_cut_and_stays_different_from_others():
    shares = [",".join(["0.25"] * count) for count in (60, 61)]
    mine = experiment(scenario=["custom"], biased_shares=shares, client_samples=[1], seeds=(1,))
    names = [run.name for run in plan_runs([mine], TINY)]
    assert len(set(names)) == 2
    assert all(len(name) < 150 for name in names)
