"""A state is the trained part of a model, and goes back where it came from."""

import pytest
import torch
from peft import get_peft_model_state_dict

from fedbias_plugin.training.parameters import live_parameters, read_state, write_state
from tests.models import add_lora

FAMILIES = ("llama", "mistral", "phi3", "gemma2", "gpt2")


def logits(model):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.tensor([[3, 9, 4, 7]])).logits


def shifted(state):
    return {name: tensor + 0.1 for name, tensor in state.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole", [False, True])
def test_a_state_written_back_restores_the_model(make, family, whole):
    model = make.model(family)
    if not whole:
        model = add_lora(model, r=2, alpha=4, seed=1, target_modules="all-linear")
    before, state = logits(model), read_state(model)
    write_state(model, shifted(state))
    assert all(torch.equal(value, state[name] + 0.1) for name, value in read_state(model).items())
    assert not torch.equal(logits(model), before)
    write_state(model, state)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_states_have_pefts_names_and_values(make, family):
    model = add_lora(make.model(family), r=2, alpha=4, seed=1)
    theirs, ours = get_peft_model_state_dict(model, save_embedding_layers=False), read_state(model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_tied_weight_appears_once(make):
    tied, untied = make.model("gpt2"), make.model("llama", tie_word_embeddings=False)
    assert "lm_head.weight" not in read_state(tied)
    assert "lm_head.weight" in read_state(untied)
    assert sum(t.numel() for t in read_state(tied).values()) == sum(p.numel() for p in tied.parameters())


def test_a_frozen_parameter_is_no_part_of_the_state(make):
    model = make.model()
    model.get_input_embeddings().weight.requires_grad_(False)
    assert "model.embed_tokens.weight" not in read_state(model)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing can be trained"):
        read_state(model)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_adapter_loaded_for_inference_has_a_state(make, tmp_path):
    from peft import PeftModel

    model = add_lora(make.model(), r=2, alpha=4, seed=1)
    write_state(model, shifted(read_state(model)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make.model(), tmp_path)
    assert not any(parameter.requires_grad for parameter in live_parameters(loaded).values())
    state = read_state(loaded)
    assert all(torch.equal(state[name], tensor) for name, tensor in read_state(model).items())
    write_state(loaded, shifted(state))
    assert not torch.equal(logits(loaded), logits(model))


def test_a_state_is_a_copy_in_both_directions(make):
    model = add_lora(make.model(), r=2, alpha=4, seed=1)
    state = read_state(model)
    for tensor in state.values():
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
        tensor.add_(1)
    assert not any(torch.equal(tensor, state[name]) for name, tensor in read_state(model).items())
    write_state(model, state)
    for tensor in state.values():
        tensor.zero_()
    assert all(tensor.any() for tensor in read_state(model).values())


def test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing(make):
    model = add_lora(make.model(), r=2, alpha=4, seed=1)
    state = read_state(model)
    name, tensor = next(iter(state.items()))
    rest = {key: value for key, value in shifted(state).items() if key != name}
    with pytest.raises(ValueError, match=rf"1 tensor\(s\) missing \({name}\), 0 unknown"):
        write_state(model, rest)
    with pytest.raises(ValueError, match=r"0 tensor\(s\) missing, 1 unknown \(odd\)"):
        write_state(model, {**shifted(state), "odd": tensor})
    with pytest.raises(ValueError, match=rf"{name} has shape \(1,\), the model's has \(2, 16\)"):
        write_state(model, {**rest, name: torch.zeros(1)})
    assert all(torch.equal(value, state[key]) for key, value in read_state(model).items())
