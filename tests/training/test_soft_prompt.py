"""A soft prompt trains alone, is saved and loaded, and has gradients of single rows."""

import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client
from fedbias_plugin.federation.saving import save_global_model
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training import per_prompt
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.dp import Private
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.models import check_fits_model, load_adapter
from fedbias_plugin.training.parameters import live_parameters, prepared, read_state, write_state
from fedbias_plugin.training.per_example import clipped_sum
from fedbias_plugin.training.per_prompt import PerPrompt, gradients_of_rows
from fedbias_plugin.training.soft_prompt import SoftPrompt

SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-2, max_steps=2, num_rounds=3)


def prompted(make, family="llama", tokens=3, seed=3, **flags):
    return prepared(make.model(family), SoftPrompt(tokens, **flags), seed)


def fit(model, rows, *terms):
    client = Client(model, terms, task=Sft(), settings=SETTINGS)
    return client.fit(client.begin(0, 0, read_state(model)), rows)


def test_it_begins_with_words_of_the_model_that_the_seed_draws_and_nothing_else_is_drawn(make):
    before = torch.get_rng_state()
    model = prompted(make)
    assert torch.equal(before, torch.get_rng_state())
    state, words = read_state(model), model.get_input_embeddings().weight
    assert {name: tuple(part.shape) for name, part in state.items()} == {"prompt_embeddings": (3, 16)}
    assert all((words == row).all(1).any() for row in state["prompt_embeddings"])
    assert torch.equal(state["prompt_embeddings"], read_state(prompted(make))["prompt_embeddings"])
    for other in (prompted(make, seed=4), prompted(make, soft_prompt_init="random")):
        assert not torch.equal(state["prompt_embeddings"], read_state(other)["prompt_embeddings"])
    write_state(model, {"prompt_embeddings": torch.ones(3, 16)})
    assert torch.equal(model.get_prompt(1)[0], torch.ones(3, 16))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_moves_the_prompt_alone_and_what_is_saved_is_what_is_loaded(make, family, tokenizers, tmp_path):
    model = prompted(make, family)
    frozen = {name: part.clone() for name, part in model.get_base_model().state_dict().items()}
    start = read_state(model)["prompt_embeddings"]
    update = fit(model, make.features(12, 7, 9, 5))
    assert (update.state["prompt_embeddings"] != start).any(1).all()
    assert all(torch.equal(part, frozen[name]) for name, part in model.get_base_model().state_dict().items())
    save_global_model(model, tokenizers["gpt2"], tmp_path / "adapter", "card")
    loaded = load_adapter(make.model(family), str(tmp_path / "adapter"))
    assert torch.equal(read_state(loaded)["prompt_embeddings"], update.state["prompt_embeddings"])
    with torch.device("meta"):
        other = make.model("llama", hidden_size=32)
    with pytest.raises(UserError, match=r"its prompt is of embeddings of 16 numbers, the model's have 32\."):
        load_adapter(other, str(tmp_path / "adapter"))


def test_what_does_not_fit_behind_the_prompt_is_refused(make):
    with pytest.raises(UserError, match=r"--num_virtual_tokens 128 leaves no room for a text: the model has 128"):
        prompted(make, tokens=128)
    model = prompted(make, tokens=100)
    check_fits_model([[1] * 28], model)
    with pytest.raises(UserError, match="A training row has 29 tokens, but the model has 28 positions"):
        check_fits_model([[1] * 29], model)


def test_it_is_an_adapter_to_the_flags():
    host, bias, recommended = resolve([("here", {"trainable": "soft_prompt"})])
    assert (host.use_peft, bias.num_virtual_tokens, host.learning_rate) == (True, 20, recommended["learning_rate"])
    with pytest.raises(UserError, match="--trainable soft_prompt and --use_peft False contradict"):
        resolve([("here", {"trainable": "soft_prompt", "use_peft": "false"})])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_gradients_of_a_batch_are_those_of_its_rows_one_by_one(make, monkeypatch, family, checkpointing):
    model, rows, found = prompted(make, family), make.features(12, 7, 9, 3), []
    parameters = live_parameters(model)
    monkeypatch.setattr(
        per_prompt, "clipped_sum", lambda parts, bound: (found.extend(parts), clipped_sum(parts, bound))[1]
    )
    with training_mode(model, checkpointing):
        model.train()
        with gradients_of_rows(model, parameters, checkpointing) as gradients:
            assert isinstance(gradients, PerPrompt)
            result = gradients.clipped_sum(PaddingCollator(0)(rows), [1] * 4, 1e9)
            with pytest.raises(UserError, match="packed rows"):
                gradients.clipped_sum(PaddingCollator(0)(rows), [1] * 3, 1e9)
        (prompt,) = parameters.values()
        for number, row in enumerate(rows):
            model.zero_grad()
            loss = model(**PaddingCollator(0)([row])).loss
            loss.backward()
            assert float(result.losses[number]) == pytest.approx(loss.item(), abs=1e-5)
            assert torch.allclose(found[0][number], prompt.grad, atol=1e-5, rtol=0)
            assert prompt.grad.norm() > 1e-3


def test_privately_without_noise_and_clipping_it_is_plain_training(make):
    pytest.importorskip("opacus")
    rows = make.features(9, 9, 9, 9)
    private = fit(prompted(make), rows, Private(dp_noise_multiplier=0.0, dp_max_grad_norm=1e9))
    assert private.extra["dp_gradient_norm"] < 1  # the Trainer clips at 1
    plain = fit(prompted(make), rows).state["prompt_embeddings"]
    assert float((private.state["prompt_embeddings"] - plain).abs().max()) < 1e-6
