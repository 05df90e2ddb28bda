"""Offsite tuning from the command line: trained, cut off, resumed, attacked, weighed and saved."""

from __future__ import annotations

import json
import math

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedbias_plugin.cli.main import main
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.metrics.statistics import FEWEST_TERMS
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run

OFFSITE = ("--trainable", "offsite", "--ot_adapter_layers", "2", "--ot_drop_ratio", "0.5")
SHORT = ("--ot_initial_rounds", "1", "--ot_align_steps", "2", "--bias_benchmarks", "crows_pairs")


@pytest.fixture(scope="session")
def deep_model(random_model, tmp_path_factory):
    """The small random model with six layers."""
    folder = tmp_path_factory.mktemp("deep")
    config = AutoConfig.from_pretrained(random_model, num_hidden_layers=6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(random_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "flags",
    [
        ("--aggregation", "bama", "--ot_probe", "emulator", "--ot_prox", "0.1", "--num_rounds", "3"),
        ("--ot_params", "full", "--learning_rate", "1e-4", "--fed_alg", "scaffold", "--attack", "sign_flip"),
    ],
    ids=["lora-bama", "full-scaffold-attacked"],
)
def test_both_models_are_measured_and_a_run_that_was_cut_off_ends_with_the_same_bytes(
    run_builtin, deep_model, tmp_path, flags
):
    flags = (*OFFSITE, *SHORT, "--model_name_or_path", str(deep_model), *flags)
    untouched, *rounds = run_builtin(*flags, output="whole")
    for record in (untouched, *rounds):
        whole, emulator = record.global_.metrics, record.global_.metrics["emulator"]
        assert emulator["loss_gap"] == pytest.approx(whole["heldout_loss"]["value"] - emulator["value"])
        assert emulator["crows_pairs_gap"] == pytest.approx(whole["crows_pairs"]["value"] - emulator["crows_pairs"])
        low, high = emulator["crows_pairs_gap_ci95"]
        assert low <= emulator["crows_pairs_gap"] <= high
        assert (emulator["loss_gap_ci95"] is None) == (emulator["n"] < FEWEST_TERMS)
        assert (emulator["n"], emulator["crows_pairs_n"]) == (whole["heldout_loss"]["n"], whole["crows_pairs"]["n"])
    assert rounds[0].global_.metrics["emulator"]["value"] != untouched.global_.metrics["emulator"]["value"]
    received = [record.clients[0].payload["received"] for record in rounds]
    assert received[0].keys() >= {"frozen layers", "emulator"}
    assert "frozen layers" not in received[1]
    assert received[1]["emulator"] == received[0]["emulator"] > 0
    with cut_off_in(len(rounds)):
        run_builtin(*flags, output="cut")
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_what_is_saved_is_the_adapter_of_the_whole_model_and_the_console_names_both(
    run_builtin, deep_model, tmp_path, capsys
):
    flags = (*OFFSITE, *SHORT, "--model_name_or_path", str(deep_model))
    *_, last = run_builtin(*flags)
    assert "emulator model: held-out loss" in capsys.readouterr().out
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(deep_model), tmp_path / "run/adapter")
    assert {name.split(".layers.")[1][0] for name, _ in model.named_parameters() if "lora_" in name} == {"4", "5"}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert "emulator" in json.dumps(summary)
    assert last.global_.metrics["emulator"]["perplexity"] > 1


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"exact_lora": "fold"}, "exact_lora fold"),
        ({"task": "classify"}, "causal"),
        ({"use_peft": False}, "use_peft"),
        ({"ot_drop_ratio": 1.5}, "ot_drop_ratio"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_flags_that_contradict_it_are_refused(flags, named):
    with pytest.raises(UserError, match=named):
        resolve([("here", {"trainable": "offsite", **flags})])


def test_ot_params_says_whether_peft_is_used():
    assert resolve([("here", {"trainable": "offsite"})])[0].use_peft is True
    assert resolve([("here", {"trainable": "offsite", "ot_params": "full"})])[0].use_peft is False


def test_the_adapter_is_trained_by_preferences_from_the_round_s_first_adapter_behind_the_emulator(
    run_builtin, deep_model
):
    flags = (*OFFSITE, *SHORT, "--model_name_or_path", str(deep_model), "--task", "dpo", "--num_rounds", "1")
    (_, only) = run_builtin(*flags, "--max_steps", "1", "--peft_lora_dropout", "0")
    for client in only.clients.values():
        assert client.train_loss == pytest.approx(
            math.log(2), abs=1e-6
        )  # at the first step the model is its own reference
        assert client.extra["dpo_margin"] == pytest.approx(0, abs=1e-6)
