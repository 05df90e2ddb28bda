"""A setting counts where something reads it."""

from __future__ import annotations

import pytest
import torch

from fedbias_plugin.aggregation.server_optimizers import ServerOptimizer
from fedbias_plugin.algorithms import ALGORITHMS
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.report.read_settings import READ_WHERE, SAME_ARM, SPEED_FLAGS, read_settings

CHANGED = {"fedopt_tau": 0.5, "fedopt_eta": 0.5, "fedopt_beta1": 0.3, "fedopt_beta2": 0.3, "fedopt_v0": 0.7}


def after_three_rounds(fed_alg, **flags):
    """The global weights when three clients have moved about in each of three rounds."""
    flags = {name.replace("fedopt_v", "v_").replace("v_ariant", "variant"): value for name, value in flags.items()}
    server = ServerOptimizer(fed_alg, num_clients=3, **flags)
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
    assert (flag in read_settings({"fed_alg": fed_alg}, "host")) == changes


def test_flags_that_the_command_line_calls_idle_do_not_count():
    idle = {name for name, _ in BiasArguments(scenario="none").idle_flags(defaults().keys())}
    counted = read_settings({"scenario": "none"}, "host")
    assert "bama_lambda" in idle
    assert not {name for name in idle if not name.startswith("wandb")} - {"rouge_samples"} & counted.keys()


@pytest.mark.parametrize(
    ("flag", "settings", "aggregation"),
    [
        ("bama_alpha", {}, "bama"), ("byzantine_clients", {}, "krum"), ("clip_norm", {}, "norm_clip"),
        ("attack_strength", {"attack": "sign_flip"}, "host"), ("biased_shares", {"scenario": "custom"}, "host"),
        ("prox_mu", {"fed_alg": "fedprox"}, "host"), ("peft_lora_r", {"use_peft": True}, "host"),
    ],
)  # fmt: skip
def test_a_flag_counts_with_what_reads_it_and_not_without(flag, settings, aggregation):
    assert flag in read_settings(settings, aggregation)
    assert flag not in read_settings({}, "host")


def test_steps_do_not_count_beside_epochs_and_the_shares_of_probe_items_always_do():
    assert "max_steps" in read_settings({}, "host")
    assert "max_steps" not in read_settings({"local_epochs": 2}, "host")
    assert {"bama_crows_fraction", "bama_stereoset_fraction"} <= read_settings({}, "host").keys()


def test_every_flag_of_the_table_exists():
    assert (READ_WHERE.keys() | SPEED_FLAGS) <= defaults().keys()
    assert not (READ_WHERE.keys() | SPEED_FLAGS) & SAME_ARM
