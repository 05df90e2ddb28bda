"""What is changed in the host's arguments before it trains a client."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedbias_plugin.hosts.openfedllm.arguments import AllArguments, AttachedArguments
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.client_training import ClientTraining, ControlVariates, add_card_to_saves


def training(pinned: bool = False, **flags: Any) -> ClientTraining:
    plugin = AttachedArguments(**flags)
    return ClientTraining(ClientData(AllArguments(SimpleNamespace(), SimpleNamespace(), plugin), is_dpo=False), pinned)


def arguments(**settings: Any) -> SimpleNamespace:
    basis = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 10, "seed": 42}
    return SimpleNamespace(**(basis | settings))


# 10 rows are 3 batches. Today's Trainer takes 2 steps an epoch. The old one needs two batches for a step, wherever the
# epoch ends: 1 step of the 3 batches of one epoch, 3 of the 6 of two; so no row is trained more often than asked.
@pytest.mark.parametrize(("pinned", "epochs", "steps"), [(False, 1, 2), (False, 2, 4), (True, 1, 1), (True, 2, 3)])
def test_epochs_become_the_steps_that_the_stack_takes_for_them(pinned, epochs, steps):
    args = arguments()
    training(pinned, local_epochs=epochs).set_length_and_seed(args, 10, client=1, round_idx=0)
    assert args.max_steps == steps
    assert args.seed == 42


def test_fewer_batches_than_an_accumulation_are_one_step_on_both_stacks():
    for pinned in (False, True):
        args = arguments(gradient_accumulation_steps=8)
        training(pinned, local_epochs=1).set_length_and_seed(args, 10, client=0, round_idx=0)
        assert args.max_steps == 1


def test_the_trainer_s_own_wandb_callback_is_left_out_where_the_plugin_logs_there(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedbias_plugin"), "propagate", True)
    shared, alone = training(track="jsonl,wandb"), training(track="jsonl")
    for made in (shared, shared, alone):
        args = arguments(report_to=["wandb", "tensorboard"])
        made.leave_wandb_to_the_plugin(args)
        assert args.report_to == (["tensorboard"] if made is shared else ["wandb", "tensorboard"])
    assert [record.getMessage()[:31] for record in caplog.records] == ["--log_with wandb is left out: -"]


class Trainer:
    """What the host's trainers have that is watched."""

    def __init__(self, folder):
        self.args = SimpleNamespace(output_dir=str(folder))

    def save_model(self, output_dir=None):
        Path(output_dir or self.args.output_dir).mkdir(exist_ok=True)
        return "saved"

    def get_auxiliary_param(self):
        return {"w": torch.ones(1)}, {"w": torch.zeros(1)}


def test_a_watched_trainer_works_as_before_and_is_gone_without_the_garbage_collector(tmp_path):
    trainer, controls = Trainer(tmp_path / "default"), ControlVariates()
    controls.watch(3, trainer)
    add_card_to_saves(trainer, "# a card")
    assert trainer.save_model() == trainer.save_model(str(tmp_path / "given")) == "saved"
    assert {path.read_text() for path in tmp_path.glob("*/README.md")} == {"# a card"}
    assert trainer.get_auxiliary_param()[0] is controls.known[3]
    gc.disable()
    try:
        watched = weakref.ref(trainer)
        del trainer
        assert watched() is None
    finally:
        gc.enable()
