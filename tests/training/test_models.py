"""Loading: what works, and what is said when it does not."""

import dataclasses
import importlib.util
import json
import warnings

import pytest
import torch
import transformers

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.models import load_adapter, model_outline
from fedbias_plugin.training.parameters import read_state
from tests.models import add_lora, load_model_and_tokenizer

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture
def folder(make, tokenizers, tmp_path):
    """A saved 2-layer Llama with the tokenizer that has no padding token."""
    make.model(vocab_size=len(tokenizers["llama3"]), hidden_size=32, intermediate_size=64).save_pretrained(tmp_path)
    tokenizers["llama3"].save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_loads_in_float32_with_eos_as_padding(folder):
    model, tokenizer = load_model_and_tokenizer(str(folder), device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.padding_side == "right"
    assert not model.training


@pytest.mark.parametrize(("dtype", "loaded"), [("bfloat16", torch.bfloat16), ("auto", torch.float16)])
def test_the_dtype_is_the_one_asked_for(folder, dtype, loaded):
    load_model_and_tokenizer(str(folder), device="cpu")[0].half().save_pretrained(folder)
    model, _ = load_model_and_tokenizer(str(folder), dtype=dtype, device="cpu")
    assert next(model.parameters()).dtype == loaded


def test_a_float32_run_reads_a_half_precision_checkpoint_in_float32(folder):
    load_model_and_tokenizer(str(folder), device="cpu")[0].half().save_pretrained(folder)
    assert next(load_model_and_tokenizer(str(folder), device="cpu")[0].parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        pytest.param({"load_in_8bit": True}, marks=needs_bitsandbytes),
        pytest.param({"load_in_4bit": True}, marks=needs_bitsandbytes),
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_small_dtypes_load_and_train_on_a_cpu(folder, make, options, checkpointing):
    model, _ = load_model_and_tokenizer(str(folder), device="cpu", **options)
    dtypes = {parameter.dtype for parameter in model.parameters()}
    expected = {"dtype": torch.bfloat16, "load_in_8bit": torch.int8, "load_in_4bit": torch.uint8}
    assert expected[next(iter(options))] in dtypes
    model = add_lora(model, r=2, alpha=4, seed=1, target_modules="all-linear")
    start = read_state(model)
    settings = TrainingSettings(batch_size=2, learning_rate=1e-2, max_steps=1, gradient_checkpointing=checkpointing)

    def losses(steps):
        trained = dataclasses.replace(settings, max_steps=steps)
        terms = terms_of("fedprox", HostArguments(), BiasArguments())
        client = Client(model, terms, task=Sft(), settings=trained)
        return client.fit(client.begin(0, 0, start, mu=0.01), make.features(8, 6))

    first, longer = losses(1), losses(12)
    assert longer.loss < first.loss
    assert longer.state.keys() == start.keys()
    assert any((longer.state[name] - start[name]).abs().max() > 0.01 for name in start)


def test_lora_starts_at_the_base_model_and_depends_on_the_seed_alone(make):
    ids = torch.tensor([[3, 9, 4]])
    base = make.model()
    with torch.inference_mode():
        before = base(input_ids=ids).logits
    states = []
    for seed, noise in [(1, 5), (1, 6), (2, 5)]:
        torch.manual_seed(noise)
        drawn = torch.get_rng_state()
        model = add_lora(make.model(), r=2, alpha=4, seed=seed).eval()
        assert torch.equal(torch.get_rng_state(), drawn)
        states.append(read_state(model))
        with torch.inference_mode():
            assert torch.equal(model(input_ids=ids).logits, before)
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_lora_warns_of_nothing_a_user_could_mend(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(make.model(), r=2, alpha=4, seed=1)


def test_lora_on_modules_that_are_not_there_lists_those_that_are(make):
    with pytest.raises(UserError, match=r"all-linear, or some of its linear modules: down_proj, gate_proj, k_proj"):
        add_lora(make.model(), r=2, alpha=4, seed=1, target_modules=["query"])


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("config.json", "holds no config.json"),
        ("*.safetensors", r"holds no weights; a \*.safetensors file belongs there"),
        ("tokenizer*", "holds no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_by_that_part(folder, removed, message):
    for file in folder.glob(removed):
        file.unlink()
    with pytest.raises(UserError, match=message):
        load_model_and_tokenizer(str(folder))


def test_pickled_weights_are_not_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights only.*safe_serialization"):
        load_model_and_tokenizer(str(folder))


def test_an_adapter_folder_is_told_from_a_model(folder, make, tmp_path_factory):
    adapter = tmp_path_factory.mktemp("adapter")
    add_lora(make.model(), r=2, alpha=4, seed=1).save_pretrained(adapter)
    with pytest.raises(UserError, match="holds an adapter, not a model"):
        load_model_and_tokenizer(str(adapter))


def test_broken_weights_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"holds a damaged or unfinished model\.safetensors \(.*\); copy it again"):
        load_model_and_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c"])
def test_a_missing_folder_is_not_asked_of_the_hub(name):
    with pytest.raises(UserError, match="there is no such folder"):
        load_model_and_tokenizer(name)


def test_a_file_is_no_model(folder):
    with pytest.raises(UserError, match="is a file; give the folder"):
        load_model_and_tokenizer(str(folder / "config.json"))


def test_an_unknown_dtype_is_refused_with_the_nearest(folder):
    with pytest.raises(UserError, match="Did you mean 'float32'"):
        load_model_and_tokenizer(str(folder), dtype="float23")


def test_a_tokenizer_without_eos_and_padding_is_refused(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="neither pad_token nor eos_token"):
        load_model_and_tokenizer(str(folder))


def test_an_outline_has_the_models_shapes_no_weights_and_draws_no_number(folder):
    drawn = torch.get_rng_state()
    outline = model_outline(str(folder))
    assert torch.equal(torch.get_rng_state(), drawn)
    model, _ = load_model_and_tokenizer(str(folder), device="cpu")
    shapes = [{name: tensor.shape for name, tensor in one.named_parameters()} for one in (outline, model)]
    assert shapes[0] == shapes[1]
    assert {parameter.device.type for parameter in outline.parameters()} == {"meta"}


def test_a_config_of_which_no_causal_lm_can_be_made_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(UserError, match=r"no causal LM can be made of its config\.json"):
        model_outline(str(folder))


def test_an_adapter_of_another_rank_does_not_fit_the_outline(folder, make, tmp_path_factory):
    adapter = tmp_path_factory.mktemp("adapter")
    add_lora(make.model(), r=2, alpha=4, seed=1).save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 3}))
    with pytest.raises(UserError, match=r"does not fit --model_name_or_path: .*size mismatch"):
        load_adapter(model_outline(str(folder)), str(adapter))
