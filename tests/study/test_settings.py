"""A setting counts where something reads it."""

from __future__ import annotations

import pytest
import torch

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.known_flags import all_options, flags_for, free_to_change
from fedbias_plugin.options import idle_flags
from fedbias_plugin.study.settings import _setting, conditions, read_settings, same_arm


def conditional_on(name):
    """The flags that are read with some values of the flag ``name`` only."""
    return {flag for flag, on in conditions().items() if name in on}


CHANGED = {"fedopt_tau": 0.5, "fedopt_eta": 0.5, "fedopt_beta1": 0.3, "fedopt_beta2": 0.3, "fedopt_v0": 0.7}


def after_three_rounds(fed_alg, **flags):
    """The global weights when three clients have moved about in each of three rounds."""
    server = ServerOptimizer(fed_alg, flags, num_clients=3)
    state = {"w": torch.zeros(4)}
    for number in range(3):
        moves = torch.randn(3, 4, generator=torch.Generator().manual_seed(number))
        local = {client: {"w": state["w"] + moves[client]} for client in range(3)}
        deltas = {client: {"w": moves[client]} for client in range(3)} if fed_alg == "scaffold" else None
        state = server.aggregate(number, state, local, {0: 3, 1: 5, 2: 7}, deltas)
    return state["w"]


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
@pytest.mark.parametrize(("flag", "value"), [*CHANGED.items(), ("fedopt_variant", "reddi")])
def test_a_server_flag_counts_exactly_where_it_changes_the_server_s_arithmetic(fed_alg, flag, value):
    changes = not torch.equal(after_three_rounds(fed_alg), after_three_rounds(fed_alg, **{flag: value}))
    assert (flag in read_settings({"fed_alg": fed_alg}, "plain")) == changes


def test_flags_that_the_command_line_calls_idle_do_not_count():
    settings = {**defaults(), "scenario": "none"}
    idle = {name for name, _ in idle_flags(all_options(), settings, defaults())}
    counted = read_settings({"scenario": "none"}, "plain")
    assert {"bama_lambda", "prox_mu", "client_samples"} <= idle
    assert not idle & counted.keys()


@pytest.mark.parametrize(
    ("flag", "settings", "aggregation"),
    [
        ("bama_alpha", {}, "bama"), ("byzantine_clients", {}, "krum"), ("clip_norm", {}, "norm_clip"),
        ("attack_strength", {"attack": "sign_flip"}, "plain"), ("biased_shares", {"scenario": "custom"}, "plain"),
        ("prox_mu", {"fed_alg": "fedprox"}, "plain"), ("peft_lora_r", {"use_peft": True}, "plain"),
    ],
)  # fmt: skip
def test_a_flag_counts_with_what_reads_it_and_not_without(flag, settings, aggregation):
    assert flag in read_settings(settings, aggregation)
    assert flag not in read_settings({}, "plain")


def test_steps_do_not_count_beside_epochs_and_the_shares_of_probe_items_always_do():
    assert "max_steps" in read_settings({}, "plain")
    assert "max_steps" not in read_settings({"local_epochs": 2}, "plain")
    assert {"bama_crows_fraction", "bama_stereoset_fraction"} <= read_settings({}, "plain").keys()


def test_what_every_flag_matters_to_is_what_it_was():
    """The lists that were kept by hand before the flags said it themselves."""
    machine = {"output_dir", "resume_from", "data_dir", "local_states", "checkpoint_every", "save_model_freq"}
    nodes = {"min_clients", "node_wait", "round_timeout"}
    assert flags_for("machine") == {*machine, *nodes, "wandb_mode"}
    assert free_to_change() == {*flags_for("machine"), "model_name_or_path", "on_bad_update", "max_update_norm"}
    assert same_arm() == {*flags_for("machine"), "seed", "schedule_seed", "track", "wandb_project", "run_name"}
    assert flags_for("speed") == {"gradient_checkpointing", "bias_batch_tokens", "on_bad_update"}
    assert flags_for("measuring") == {"bias_eval_every", "rouge_samples", "scoring_dtype"}
    server = {"prox_mu", "fedopt_tau", "fedopt_eta", "fedopt_v0", "fedopt_beta1", "fedopt_beta2", "fedopt_variant"}
    assert conditional_on("fed_alg") == server
    rules = {"bama_alpha", "bama_lambda", "bama_weighting", "byzantine_clients", "clip_norm"}
    rules |= {"bama_bias_range", "bama_min_ability", "fedpsf_modules"}
    rules |= {"predictive_lambda", "predictive_z", "predictive_kappa"}
    rules |= {"fedavgw_by", "fedavgw_scope", "qfedavg_q", "qfedavg_lipschitz", "agnostic_step"}
    modules = {"psm_tau", "psm_rho", "psm_unit", "psm_residual", "dwm_gamma", "dwm_beta", "dwm_kappa"}
    modules |= {"abm_temperature", "abm_eta"}
    assert conditional_on("fedpsf_modules") == modules
    rules |= modules
    assert conditional_on("aggregation") == rules
    lora = {"peft_lora_r", "peft_lora_alpha", "peft_lora_dropout", "peft_lora_target_modules"}
    lora |= {"load_in_8bit", "load_in_4bit", "fedavgw_scope", "exact_lora"}
    assert conditional_on("use_peft") == lora
    prompt = {"num_virtual_tokens", "soft_prompt_init"}
    offsite = {*(name for name in all_options() if name.startswith("ot_")), "client_memory_mb"}
    adapters = {name for name in lora if name.startswith("peft_")}
    assert conditional_on("trainable") == {*prompt, *offsite, *adapters, "fedavgw_scope"}
    metrics = {"crows_reduction", "stereoset_reduction", "bama_crows_fraction", "bama_stereoset_fraction"}
    metrics |= {"sample_prompts", "sample_tokens", "sample_seed", "winobias_split"}
    metrics |= {"gender_gradient_texts", "gender_clip", "gender_texts"}
    metrics |= {"toxicity_classifier", "sentiment_classifier", "regard_classifier"}
    metrics |= {"harness_shots", "harness_limit", "harness_probe_fraction"}
    assert conditional_on("bias_benchmarks") == metrics
    dealt = {"columns", "clean_dataset", "biased_dataset", "client_samples", "heldout_samples", "rouge_samples"}
    others = {
        "template",
        *("attack_strength", "adaptive_clean", "adaptive_sentences", "insider_gate", "insider_sentences"),
        "biased_shares",
        "cda_mode",
        "cda_words",
        "cda_dp_unit",
        *("dp_delta", "dp_unit"),
        "max_steps",
        "wandb_project",
        "wandb_mode",
        "preference_dataset",
        "dpo_reference",
    }
    private = {"cda_dp_unit", "dp_max_grad_norm", "dp_optimizer", "dp_accountant", "dp_update_norm"}
    assert conditional_on("dp_unit") == private
    skew = {"partitioner", "dirichlet_alpha", "dirichlet_min", "client_field"}
    classes = {"text_field", "classifier", "random_weights"}
    assert conditions().keys() == (
        server | rules | lora | prompt | offsite | metrics | dealt | skew | classes | private | others
    )


def test_labels_call_settings_and_their_values_by_the_names_of_the_study_file():
    shown_as = {None: "off", "dp_epsilon": "ε", "cda_ratio": "CDA"}
    assert _setting("dp_epsilon", None, shown_as) == "ε=off"
    assert _setting("dp_epsilon", 3.0, shown_as) == "ε=3"
    assert _setting("cda_ratio", 0.5, shown_as) == "CDA=0.5"
    assert _setting("prox_mu", None, shown_as) == "prox_mu=none"
    assert _setting("cda_ratio", [1], shown_as) == "CDA=[1]"


def test_every_condition_is_on_a_flag_that_there_is():
    known = all_options()
    for name, about in known.items():
        for other, values in (about.read_when or {}).items():
            assert other in known, name
            choices = {choice.partition(":")[0] for choice in known[other].known}  # harness:TASK is read with harness
            assert not known[other].choices or set(values) <= {*choices, None}, name
