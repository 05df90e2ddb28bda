"""A client that is sent an emulator model makes it of the config alone: no layer that it may not hold is ever there."""

import functools

import pytest
import torch

from fedbias_plugin.training.alignment import Teacher
from fedbias_plugin.training.fingerprint import outline_fingerprint
from fedbias_plugin.training.offsite import ALIGNED_PART, FROZEN, Offsite
from fedbias_plugin.training.parameters import prepared, read_state, write_state
from fedbias_plugin.training.surgery import layer_count, unread_model
from tests.training.conftest import FAMILIES, gpt2_like

MAKE = functools.partial(unread_model, device="cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_like()


def six_layers(make, family):
    return make.model(family, **{"n_layer" if family == "gpt2" else "num_hidden_layers": 6})


@pytest.mark.parametrize("params", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_of_a_client_is_the_servers_emulator_model(make, tokenizer, family, params):
    flags = {"ot_drop_ratio": 0.5, "ot_params": params}
    server, client = Offsite(**flags), Offsite(**flags)
    whole = prepared(six_layers(make, family), server, 3)
    emulator = server.client_model(whole)
    with torch.no_grad():
        for parameter in server.emulator_parameters.values():
            parameter.add_(0.125)  # an alignment
    write_state(emulator, read_state(whole))

    model = client.unread_model(six_layers(make, family).config, MAKE, 9)
    assert layer_count(model) == 4
    assert outline_fingerprint(model, tokenizer) == outline_fingerprint(emulator, tokenizer)
    client.take(model, {name: server.part(name) for name in (FROZEN, ALIGNED_PART)})
    write_state(model, read_state(whole))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, emulator.eval()(ids).logits)
    for name, parameter in emulator.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
        assert model.get_parameter(name).requires_grad == parameter.requires_grad, name


def test_another_config_is_told_though_every_weight_has_its_shape(make, tokenizer):
    config = six_layers(make, "llama").config
    first = outline_fingerprint(Offsite(ot_drop_ratio=0.5).unread_model(config, MAKE, 0), tokenizer)
    config._name_or_path = "elsewhere"
    assert outline_fingerprint(Offsite(ot_drop_ratio=0.5).unread_model(config, MAKE, 0), tokenizer) == first
    config.rms_norm_eps = 1e-3
    assert outline_fingerprint(Offsite(ot_drop_ratio=0.5).unread_model(config, MAKE, 0), tokenizer) != first


def test_the_whole_model_teaches_the_same_whatever_was_drawn_before(make):
    whole = prepared(six_layers(make, "llama"), Offsite(peft_lora_dropout=0.5), 3)
    write_state(whole, {name: one + 0.125 for name, one in read_state(whole).items()})
    (row,) = features = make.features(9)
    teacher = Teacher(whole.train(), [5], features, with_logits=True)
    batch = {name: torch.tensor([row[name]]) for name in ("input_ids", "attention_mask")}
    (states,), logits = teacher([0], batch)
    teacher.forget()
    (again,), others = teacher([0], batch)
    assert torch.equal(states, again)
    assert torch.equal(logits, others)
