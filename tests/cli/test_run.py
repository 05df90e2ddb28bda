"""How ``fedbias run`` puts its flags together."""

from __future__ import annotations

import argparse

import pytest

from fedbias_plugin.cli.main import build_parser
from fedbias_plugin.cli.run import resolve_arguments
from fedbias_plugin.errors import UserError


def resolved(*flags: str):
    parsed: argparse.Namespace = build_parser().parse_args(["run", *flags])
    return resolve_arguments(parsed)


def test_the_bundled_model_brings_its_recommended_values_for_flags_nobody_gave():
    host, bias = resolved("--batch_size", "4")
    assert (host.batch_size, host.use_peft, host.learning_rate, bias.local_epochs) == (4, True, 4e-3, 2)


def test_another_model_keeps_the_defaults():
    host, bias = resolved("--model_name_or_path", "some/model")
    assert (host.use_peft, host.learning_rate, bias.local_epochs, host.max_steps) == (False, 2e-5, None, 10)


def test_written_steps_are_not_overruled_by_recommended_epochs():
    host, bias = resolved("--max_steps", "5")
    assert (host.max_steps, bias.local_epochs) == (5, None)


def test_training_all_weights_does_not_take_the_recommended_lora_learning_rate():
    host, _ = resolved("--use_peft", "false")
    assert (host.use_peft, host.learning_rate) == (False, 2e-5)


def test_the_command_line_wins_over_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("num_rounds: 7\nbama_lambda: 0.4\naggregation: bama\n")
    host, bias = resolved("--config", str(path), "--bama_lambda", "0.1")
    assert (host.num_rounds, bias.bama_lambda, bias.aggregation) == (7, 0.1, "bama")


@pytest.mark.parametrize("line", ["num_rounds: .inf", "output_dir:", "num_rounds: [1]"])
def test_a_value_in_a_file_that_fits_no_flag_names_file_and_flag(tmp_path, line):
    path = tmp_path / "run.yaml"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=r"--\w+ .*run\.yaml\) must be"):
        resolved("--config", str(path))


def test_custom_shares_decide_how_many_clients_may_take_part():
    host, _ = resolved("--scenario", "custom", "--biased_shares", "1,0,0,0.5", "--sample_clients", "4")
    assert (host.num_clients, host.sample_clients) == (4, 4)
    with pytest.raises(UserError, match="--sample_clients 5 is more than --num_clients 4"):
        resolved("--scenario", "custom", "--biased_shares", "1,0,0,0.5", "--sample_clients", "5")


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(UserError, match="give one"):
        resolved("--max_steps", "5", "--local_epochs", "1")


def test_wandb_mode_is_left_to_the_environment_unless_it_is_given():
    assert resolved()[1].wandb_mode is None
    assert resolved("--wandb_mode", "offline")[1].wandb_mode == "offline"
