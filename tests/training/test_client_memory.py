"""The memory that a client needs: the formula beside what a real step takes, and whose device gets which adapter."""

import functools
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.base import ClientRound
from fedbias_plugin.training.client_memory import client_memory, measured_peak
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.devices import fitted, training_last
from fedbias_plugin.training.offsite import Offsite
from fedbias_plugin.training.offsite_flags import memory_of_clients
from fedbias_plugin.training.parameters import live_parameters, prepared, read_state
from fedbias_plugin.training.trainables import Full, Lora

ALL = {"peft_lora_target_modules": "all-linear"}
SETTINGS = TrainingSettings(batch_size=4, seq_length=64)
SHORT = TrainingSettings(batch_size=2, seq_length=64)


def six_layers(family="llama", vocabulary=2048, dtype=torch.float32, device="cpu"):
    """6 layers of width 128."""
    sizes = {"vocab_size": vocabulary, "hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4}
    inner = {"bos_token_id": 1, "eos_token_id": 2} if family == "gpt2" else {"intermediate_size": 384}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes, **inner, max_position_embeddings=128)
        return AutoModelForCausalLM.from_config(config).to(dtype)


def emulator_model(model, **flags):
    """What clients train in at drop .5, by default with an adapter of 2 of the 6 layers."""
    trainable = Offsite(**{**ALL, "ot_drop_ratio": 0.5, **flags})
    return trainable.client_model(prepared(model, trainable, 0)), trainable


@functools.cache
def peak_of(what):
    """Estimate and measured peak of a client at drop .5 with 2 of 6 layers, or of one with the whole model and LoRA."""
    model = emulator_model(six_layers())[0] if what == "emulator" else prepared(six_layers(), Lora(**ALL), 0)
    return client_memory(model, SETTINGS).total, measured_peak(model, SETTINGS)


@pytest.mark.parametrize("what", ["whole", "emulator"])
def test_the_estimate_is_within_a_quarter_of_the_measured_peak(what):
    estimate, peak = peak_of(what)
    assert estimate == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize(
    ("model", "trainable", "settings"),
    [
        ({"vocabulary": 12288}, Lora(**ALL), {}),
        ({"family": "gpt2"}, Lora(), {}),
        ({}, Full(), {}),
        ({}, Lora(**ALL), {"gradient_checkpointing": True}),
        ({"dtype": torch.bfloat16}, Lora(peft_lora_dropout=0.0), {"gradient_accumulation_steps": 2}),
    ],
    ids=["vocabulary", "gpt2", "full", "checkpointing", "bfloat16"],
)  # fmt: skip
def test_the_estimate_holds_for_other_shapes_and_settings(model, trainable, settings):
    made = prepared(six_layers(**model), trainable, 0)
    chosen = TrainingSettings(batch_size=2, seq_length=32, **settings)
    assert client_memory(made, chosen).total == pytest.approx(measured_peak(made, chosen), rel=0.25)


def test_a_client_of_the_emulator_needs_at_most_70_percent_of_the_whole_model_s():
    share = peak_of("emulator")[1] / peak_of("whole")[1]
    print(f"measured peak at drop .5 with adapter 2 of 6: {100 * share:.1f}% of the whole model's with LoRA")
    assert share <= 0.7


def test_a_measurement_changes_no_weight_and_no_random_state():
    model = emulator_model(six_layers())[0].eval()
    before, drawn = read_state(model), torch.random.get_rng_state()
    measured_peak(model, TrainingSettings(batch_size=1, seq_length=8))
    assert all(torch.equal(part, before[name]) for name, part in read_state(model).items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert not model.training


def test_what_does_not_train_costs_its_weights_alone():
    model, trainable = emulator_model(six_layers(), ot_adapter_choices="1,2,3")
    needs = {}
    for layers in trainable.choices:
        with training_last(trainable.parameters(model), layers):
            needs[layers] = client_memory(model, SHORT)
    adapter = sum(one.nbytes for name, one in trainable.parameters(model).items() if ".5." in name)
    assert [need.gradients for need in needs.values()] == [adapter, 2 * adapter, 3 * adapter]
    assert [need.moments for need in needs.values()] == [2 * adapter, 4 * adapter, 6 * adapter]
    assert len({need.weights for need in needs.values()}) == 1
    assert needs[3].activations - needs[2].activations == needs[2].activations - needs[1].activations > 0
    assert needs[1].logits == 2 * 64 * 2048 * 4 * 3  # rows, length, vocabulary, float32, copies


def test_an_outline_needs_what_the_loaded_model_does():
    flags = {"dtype": "float32", "load_in_4bit": False, "load_in_8bit": False}
    outline = emulator_model(six_layers(device="meta"))[0]
    estimate = client_memory(outline, SHORT, flags)
    assert estimate == client_memory(emulator_model(six_layers())[0], SHORT)
    half = client_memory(outline, SHORT, {**flags, "dtype": "bfloat16"})
    packed = client_memory(outline, SHORT, {**flags, "load_in_4bit": True})
    assert packed.weights < half.weights < estimate.weights
    assert half.activations < estimate.activations == packed.activations


def flags_of(memory, clients=3, **changed):
    """The flags that decide whose device gets which adapter."""
    return {**vars(SHORT), "client_memory_mb": memory, "num_clients": clients, **changed}


def test_every_device_gets_the_largest_adapter_that_fits():
    model, trainable = emulator_model(six_layers(), ot_adapter_choices="3,1")
    parameters = trainable.parameters(model)
    needs = []
    for layers in (1, 3):
        with training_last(parameters, layers):
            needs.append(client_memory(model, SHORT).total / 2**20)
    budgets = f"{needs[0]},{(needs[0] + needs[1]) / 2},{needs[1]}"
    assert fitted(model, parameters, (1, 3), flags_of(budgets)) == [1, 1, 3]
    assert fitted(model, parameters, (1, 3), flags_of("500")) == [3, 3, 3]
    with pytest.raises(UserError, match=rf"Client 1 needs {needs[0]:.1f} MiB .* of 1 layer\(s\), and .* gives it 1.0"):
        fitted(model, parameters, (1, 3), flags_of("500,1,500"))
    assert all(one.requires_grad for one in parameters.values())


def test_a_client_trains_its_last_layers_alone_and_the_others_keep_their_bytes(make):
    model = make.model(num_hidden_layers=6)
    trainable = Offsite(ot_adapter_choices="1,3", client_memory_mb="9,9", ot_drop_ratio=0.5, ot_align="none")
    trainable._chosen = [1, 3]
    model = prepared(model, trainable, 0)
    emulator = trainable.client_model(model)
    settings = TrainingSettings(batch_size=2, learning_rate=1e-2, max_steps=2, num_rounds=3)
    client = Client(emulator, [], trainable=trainable, task=Sft(), settings=settings)
    theta, moved = read_state(emulator), []
    for number in (0, 1):
        update = client.fit(ClientRound(number, 0, theta), make.features(9, 7, 8))
        changed = {name.split(".layers.")[1][0] for name, part in update.state.items() if (part != theta[name]).any()}
        moved.append(sorted(changed))
        assert update.extra["adapter_layers"] == (1, 3)[number]
        assert update.extra["client_memory_bytes"] > 0
    assert moved == [["5"], ["3", "4", "5"]]
    assert theta.keys() == read_state(model).keys()
    assert all(parameter.requires_grad for parameter in live_parameters(emulator).values())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"client_memory_mb": None}, "chosen from by --client_memory_mb"),
        ({"client_memory_mb": "1,2"}, "has 2 numbers for 3 clients"),
        ({"client_memory_mb": "1,x,2"}, "give MiB above 0"),
        ({"client_memory_mb": "-1"}, "give MiB above 0"),
        ({"ot_adapter_choices": "2,x"}, "numbers of layers from 1 on"),
        ({"ot_adapter_choices": "0,2"}, "numbers of layers from 1 on"),
        ({"ot_adapter_layers": 2}, "contradict each other"),
        ({"fed_alg": "scaffold"}, "SCAFFOLD's correction"),
        ({"fed_alg": "fedadam"}, "--fed_alg fedadam would move on by its momentum"),
        ({"dp_epsilon": 3.0}, "noise of --dp_epsilon"),
        ({"dp_noise_multiplier": 1.0}, "noise of --dp_epsilon"),
        ({"exact_lora": "truncate"}, "--exact_lora averages"),
        ({"aggregation": "median"}, "--aggregation median compares"),
        ({"aggregation": "krum"}, "--aggregation krum compares"),
        ({"aggregation": "norm_clip"}, "--aggregation norm_clip compares"),
        ({"aggregation": "fedpsf"}, "give --fedpsf_modules dwm,abm"),
    ],
)
def test_what_does_not_fit_devices_of_several_sizes_is_refused_with_a_sentence(given, message):
    flags = {"ot_adapter_choices": "2,4", "client_memory_mb": "1", "num_clients": 3, **given}
    with pytest.raises(UserError, match=message):
        Offsite.check_flags(flags)


@pytest.mark.parametrize("given", [{"aggregation": "bama"}, {"aggregation": "fedavgw"}, {"fed_alg": "fedprox"}])
def test_rules_that_weigh_clients_go_with_devices_of_several_sizes(given):
    Offsite.check_flags({"ot_adapter_choices": "2,4", "client_memory_mb": "1", "num_clients": 3, **given})


def test_the_largest_choice_is_the_adapter_and_must_fit_the_model():
    assert (Offsite().adapter_layers, Offsite(ot_adapter_layers=3).adapter_layers) == (2, 3)
    assert Offsite(ot_adapter_choices="4,2").adapter_layers == 4
    with pytest.raises(UserError, match="--ot_adapter_choices 5: the model has 6 layers"):
        emulator_model(six_layers(device="meta"), ot_adapter_choices="2,5")
    assert memory_of_clients("8", 2) == [8 * 2**20] * 2


def test_another_kind_of_model_has_no_estimate():
    with pytest.raises(UserError, match="No list of decoder layers"):
        client_memory(SimpleNamespace(), SHORT)
