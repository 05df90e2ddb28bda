"""Where the model goes before the host copies its global state from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedbias_plugin.hosts.openfedllm import peft_bridges


@pytest.mark.parametrize("placed", ["", *peft_bridges.PLACED])
def test_a_model_goes_to_the_training_device_unless_it_was_placed_when_loaded(monkeypatch, placed):
    monkeypatch.setattr(peft_bridges, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    model = torch.nn.Linear(2, 2)
    if placed:
        setattr(model, placed, {"": 0})
    assert peft_bridges.on_training_device(model) is model
    assert model.weight.device.type == ("cpu" if placed else "meta")


def test_an_adapter_is_drawn_from_the_seed_and_nothing_else_is():
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    drawn = []
    for seed in (1, 1, 2):
        with peft_bridges.drawn_from(seed):
            drawn.append(torch.rand(3))
    first, again, other = drawn
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
