"""Layers are taken out of models, emulators follow them, and clients train the adapter alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client
from fedbias_plugin.progress import Progress
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.alignment import Aligner, Goal, Teacher, cosine_distance, kl_divergence, l2_distance
from fedbias_plugin.training.base import ClientRound
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.models import load_model
from fedbias_plugin.training.offsite import EMULATOR, Offsite
from fedbias_plugin.training.parameters import live_parameters, prepared, read_state, write_state
from fedbias_plugin.training.surgery import kept_layers, layer_count, sliced_config, with_layers
from fedbias_plugin.training.terms import AdapterProx

SETTINGS = TrainingSettings(batch_size=2, learning_rate=1e-2, max_steps=2, num_rounds=3)
LENGTHS = (12, 7, 9, 5)


def six_layers(make, family="llama", **changes):
    """A model with layers enough, and far from the uniform distribution."""
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    model = make.model(family, **{name: 6, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


class Rows(Sft):
    """A task whose rows are features already."""

    def encode(self, rows, tokenizer, seq_length):
        return rows


class Tokenizer:
    pad_token_id = 0


def offsite(make, family="llama", rows=LENGTHS, prompt=2, **flags):
    """A model, the emulator model, and the trainable, which has started."""
    trainable = Offsite(
        **{"peft_lora_dropout": 0.0, "ot_drop_ratio": 0.5, "ot_initial_rounds": 1, "ot_align_steps": 2, **flags}
    )
    model = prepared(six_layers(make, family), trainable, 3)
    trainable._public = make.features(*rows, prompt=prompt)
    trainable.start(model, Rows(), Tokenizer(), SETTINGS, 128)
    return model, trainable.client_model(model), trainable


def logits_of(model, row):
    with torch.no_grad():
        return model(input_ids=torch.tensor([row["input_ids"]])).logits


def bytes_of(parameters):
    return {name: parameter.detach().numpy().tobytes() for name, parameter in parameters.items()}


def fit(client_model, trainable, theta, rows, **job):
    client = Client(client_model, trainable.terms, trainable=trainable, task=Rows(), settings=SETTINGS)
    return client.fit(ClientRound(0, 0, theta, broadcast=trainable.broadcast(0), **job), rows)


def test_the_layers_that_are_kept_are_the_published_ones():
    assert kept_layers(30, 0.5) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 29]
    assert kept_layers(4, 0.5) == [0, 3]
    assert kept_layers(4, 0.2) == [0, 1, 3]
    assert kept_layers(5, 0.5) == [0, 4]  # 2.5 is rounded to even
    assert kept_layers(6, 0) == [0, 1, 2, 3, 4, 5]
    for layers, drop in ((2, 0.5), (4, 0.8), (4, 1.0)):
        with pytest.raises(UserError, match="ot_drop_ratio"):
            kept_layers(layers, drop)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma2", "gpt2"])
def test_some_layers_are_the_model_that_transformers_makes_of_them_with_caches_and_attention_patterns(make, family):
    model, numbers = six_layers(make, family), [0, 1, 3, 4, 5]
    before = read_state(model)
    made = with_layers(model, numbers)
    built = AutoModelForCausalLM.from_config(sliced_config(model.config, numbers)).eval()
    built.load_state_dict(made.state_dict())
    ids = torch.tensor([make.features(60)[0]["input_ids"]])  # longer than the windows
    with torch.no_grad():
        assert torch.equal(made(ids).logits, built(ids).logits)
        assert not torch.equal(made(ids).logits, model(ids).logits)
        assert torch.equal(with_layers(model, range(6))(ids).logits, model(ids).logits)
        mask, tokens = torch.ones_like(ids), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        cached, anew = (made.generate(ids, attention_mask=mask, use_cache=use, **tokens) for use in (True, False))
        assert torch.equal(cached, anew)
    if family == "gemma2":
        assert made.config.layer_types == [model.config.layer_types[number] for number in numbers]
    assert layer_count(made) == 5 == made.config.num_hidden_layers
    assert layer_count(model) == 6
    assert made.get_input_embeddings().weight is model.get_input_embeddings().weight
    assert all(torch.equal(tensor, before[name]) for name, tensor in read_state(model).items())


def test_the_distances_are_what_they_say_and_padding_counts_in_none():
    teacher, student = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[3.0, 0.0]]])
    real = torch.tensor([[True]])
    assert l2_distance(student, teacher, real).item() == pytest.approx(0.64)
    assert cosine_distance(student, teacher, real).item() == pytest.approx(0.4)
    p, q = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1]]]).log()
    assert kl_divergence(q, p, real).item() == pytest.approx(0.5108, abs=1e-4)
    padded = [torch.cat([part, torch.full((1, 3, 2), 7.0)], 1) for part in (student, teacher)]
    for distance in (l2_distance, cosine_distance, kl_divergence):
        longer = distance(*padded, torch.tensor([[True, False, False, False]]))
        assert longer.item() == pytest.approx(distance(student, teacher, real).item())


@pytest.mark.parametrize("params", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma2", "gpt2"])
def test_a_client_moves_the_adapter_alone_and_an_alignment_the_emulator_alone(make, family, params):
    model, emulator, trainable = offsite(make, family, ot_params=params)
    assert getattr(emulator, EMULATOR) == [0, 3, 4, 5]
    assert list(live_parameters(emulator)) == list(live_parameters(model))
    theta = read_state(model)
    assert all(".4." in name or ".5." in name for name in theta)
    whole = bytes_of(dict(model.named_parameters()))
    aligned = {id(part) for part in trainable.emulator_parameters.values()}
    adapter = {id(part) for part in live_parameters(emulator).values()}
    frozen = {name: part for name, part in emulator.named_parameters() if id(part) not in aligned | adapter}
    before = bytes_of(trainable.emulator_parameters), bytes_of(frozen)
    update = fit(emulator, trainable, theta, make.features(12, 9, 7, 5))
    assert update.state.keys() == theta.keys()
    assert all(not torch.equal(part, theta[name]) for name, part in update.state.items())
    assert (bytes_of(trainable.emulator_parameters), bytes_of(frozen)) == before
    write_state(emulator, theta)
    trainable.before_round(0, theta, Progress())
    after = bytes_of(trainable.emulator_parameters)
    assert all(part != before[0][name] for name, part in after.items())
    assert bytes_of(frozen) == before[1]
    assert all(torch.equal(part, theta[name]) for name, part in read_state(emulator).items())
    assert bytes_of(dict(model.named_parameters())) == whole
    assert {id(part) for part in emulator.parameters() if part.requires_grad} == adapter


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_base_is_cut_the_same_way(make, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    six_layers(make, hidden_size=64, intermediate_size=128, num_key_value_heads=2).save_pretrained(tmp_path)
    fresh = Offsite(ot_drop_ratio=0.0)
    model = prepared(load_model(str(tmp_path), **{bits: True}), fresh, 3)
    row = make.features(20)[0]
    assert torch.equal(logits_of(fresh.client_model(model), row), logits_of(model, row))
    trainable = Offsite(peft_lora_dropout=0.0, ot_drop_ratio=0.5, ot_initial_rounds=1, ot_align_steps=2)
    model = prepared(load_model(str(tmp_path), **{bits: True}), trainable, 3)
    trainable._public = make.features(*LENGTHS)
    trainable.start(model, Rows(), Tokenizer(), SETTINGS, 128)
    theta, before = read_state(model), bytes_of(trainable.emulator_parameters)
    trainable.before_round(0, theta, Progress())
    assert all(part != before[name] for name, part in bytes_of(trainable.emulator_parameters).items())
    update = fit(trainable.client_model(model), trainable, theta, make.features(12, 9, 7, 5))
    assert all(not torch.equal(part, theta[name]) for name, part in update.state.items())


@pytest.mark.parametrize("params", ["lora", "full"])
def test_a_fresh_emulator_without_a_dropped_layer_is_the_model_and_has_nothing_to_learn(make, params):
    model, emulator, trainable = offsite(make, "gemma2", ot_drop_ratio=0.0, ot_params=params)
    row = make.features(40)[0]
    assert torch.equal(logits_of(emulator, row), logits_of(model, row))
    assert trainable._aligner.loss([0, 1]).item() == pytest.approx(0, abs=1e-6)


def test_the_plugged_in_model_is_the_original_to_the_bit_before_anything_is_trained(make):
    for params in ("lora", "full"):
        model, emulator, _ = offsite(make, ot_params=params)
        write_state(model, read_state(emulator))
        row = make.features(20)[0]
        assert torch.equal(logits_of(model, row), logits_of(six_layers(make), row))


def test_alignment_brings_the_emulator_nearer_reads_the_teacher_once_and_again_when_the_adapter_has_changed(make):
    model, _, trainable = offsite(make, ot_params="full", ot_align_steps=20)
    theta, aligner = read_state(model), trainable._aligner
    before = aligner.loss([0, 1, 2, 3]).item()
    trainable.before_round(0, theta, Progress())
    assert aligner.loss([0, 1, 2, 3]).item() < 0.8 * before
    assert aligner.teacher.forwards == 4 + 4  # rows; 20 steps of two rows would be 40
    said = aligner.loss([0, 1]).item()
    trainable.before_round(0, theta, Progress())  # a round that was begun again is not aligned twice
    assert aligner.loss([0, 1]).item() == said
    moved = {name: part + 0.05 for name, part in theta.items()}
    write_state(model, moved)
    trainable.before_round(1, moved, Progress())
    fresh = Teacher(model, aligner.teacher.layers, aligner.teacher.features, with_logits=True)
    kept_loss = aligner.loss([0, 1]).item()
    aligner.teacher = fresh
    assert aligner.loss([0, 1]).item() == pytest.approx(kept_loss, rel=1e-6)


def test_padding_changes_no_loss(make):
    _, _, trainable = offsite(make, rows=(12, 7), ot_lm_weight=0.3)
    aligner = trainable._aligner
    alone = [aligner.loss([index]).item() for index in (0, 1)]

    def collate(rows):
        batch = Rows().collator(0)(rows)
        fill = {"input_ids": 5, "attention_mask": 0, "labels": -100}
        return {name: torch.nn.functional.pad(part, (0, 9), value=fill[name]) for name, part in batch.items()}

    padded = Aligner(
        aligner.emulator, aligner.trained, aligner.teacher, aligner.goal, collate, batch_size=1, learning_rate=1, seed=0
    )
    assert [padded.loss([index]).item() for index in (0, 1)] == pytest.approx(alone, rel=1e-5)


def test_the_goal_is_that_of_the_flags(make):
    _, _, every = offsite(make)
    assert every._aligner.goal == Goal("l2", [(0, 0), (1, 3)], 1.0, 0.9, 0.0)
    _, _, last = offsite(make, ot_layerwise=False, ot_sim="cos")
    assert last._aligner.goal == Goal("cos", [(1, 3)], 1.0, 0.9, 0.0)
    _, _, initial = offsite(make, ot_align="initial")
    assert initial._aligner.goal == Goal("l2", [(0, 0), (1, 3)], 0.9, 0.0, 0.1)
    theta = read_state(initial._emulator)
    initial.before_round(0, theta, Progress())
    emulator = bytes_of(initial.emulator_parameters)
    initial.before_round(1, theta, Progress())
    assert bytes_of(initial.emulator_parameters) == emulator
    never = offsite(make, ot_align="none")[2]
    never.before_round(0, theta, Progress())
    assert never._aligner is None
    assert never.broadcast(0).keys() == {"frozen layers"}


def test_the_emulator_is_sent_when_a_client_has_not_got_it_as_it_is(make):
    model, _, trainable = offsite(make)
    theta = read_state(model)
    trainable.before_round(0, theta, Progress())
    first = trainable.broadcast(0)
    assert list(first) == ["frozen layers", "emulator"]
    held = {name for part in first.values() for name in part} | set(live_parameters(trainable._emulator))
    assert len(held) == len(dict(trainable._emulator.named_parameters()))
    assert trainable.broadcast(0).keys() == first.keys()  # the round was not finished
    trainable.delivered([0])
    assert trainable.broadcast(0) == {}
    assert trainable.broadcast(1).keys() == first.keys()
    trainable.before_round(1, theta, Progress())
    assert list(trainable.broadcast(0)) == ["emulator"]


def test_the_proximal_term_has_the_gradient_of_its_formula():
    start, now = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.5, -1.0], dtype=torch.float64)
    parameter = torch.nn.Parameter(now.clone())
    term = AdapterProx(0.3)
    term.begin(ClientRound(0, 0, {"a": start}), {"a": parameter})

    def loss():
        return term.add_to_loss(torch.zeros((), dtype=torch.float64))

    loss().backward()
    assert torch.allclose(parameter.grad, 2 * 0.3 * (now - start))
    for place in range(2):  # finite differences
        sides = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.copy_(now)
                parameter[place] += step
            sides.append(loss().item())
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(parameter.grad[place].item(), rel=1e-6)


def test_what_does_not_fit_is_said(make):
    for flags, named in (
        ({"ot_adapter_layers": 5}, "ot_adapter_layers 5"),
        ({"ot_drop_ratio": 0.9}, "ot_drop_ratio 0.9"),
        ({"peft_lora_target_modules": "nowhere"}, "peft_lora_target_modules"),
    ):
        with pytest.raises(UserError, match=named):
            Offsite(**flags).prepare(six_layers(make), 0)
    with pytest.raises(UserError, match="cut off"):
        offsite(make, rows=(3, 2), prompt=5)
