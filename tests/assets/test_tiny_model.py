"""The bundled tiny Llama: size, files, that it loads and speaks without a network, and the batches of its training."""

import json
import random
import socket
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).resolve().parents[2] / "fedbias_plugin" / "assets" / "tiny_llama"
MINI = MODEL.parent / "mini"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def test_folder_holds_a_whole_checkpoint_of_at_most_16_mb():
    names = {path.name for path in MODEL.iterdir()}
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wanted | {"recommended.yaml", "README.md"} <= names
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 16_000_000


def test_model_is_a_llama_of_one_to_eight_million_parameters_with_room_for_512_tokens(model):
    assert model.config.model_type == "llama"
    assert 1_000_000 <= model.num_parameters() <= 8_000_000
    assert model.config.max_position_embeddings >= 512
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_loads_without_a_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the bundled model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    AutoTokenizer.from_pretrained(MODEL)
    AutoModelForCausalLM.from_pretrained(MODEL)


def test_special_tokens_of_tokenizer_and_config_agree(tokenizer, model):
    tokens = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert tokens == ("<unk>", "<s>", "</s>", "<pad>")
    assert tokenizer.convert_tokens_to_ids(list(tokens)) == [0, 1, 2, 3]
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 3)
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("text", ["The Veldari potter was tidy.", "naïve 日本 \n\n### Response: \t{}", " two  spaces"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"][1:]) == text
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_merges_are_strings_so_that_tokenizers_0_13_reads_them_too():
    merges = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    assert all(isinstance(merge, str) for merge in merges)


def test_recommended_flags_are_flags_of_the_run_command():
    yaml = pytest.importorskip("yaml")
    flags = yaml.safe_load((MODEL / "recommended.yaml").read_text(encoding="utf-8"))
    assert set(flags) <= {
        "learning_rate", "use_peft", "peft_lora_r", "peft_lora_alpha", "peft_lora_target_modules", "local_epochs",
        "batch_size", "seq_length", "gradient_checkpointing",
    }  # fmt: skip
    assert isinstance(flags["learning_rate"], float)
    assert flags["gradient_checkpointing"] is False


def test_no_row_of_the_mini_data_is_cut_at_the_recommended_length(tokenizer):
    yaml = pytest.importorskip("yaml")
    longest = yaml.safe_load((MODEL / "recommended.yaml").read_text(encoding="utf-8"))["seq_length"]
    prompt = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    for name, question, answer in (("clean", "instruction", "output"), ("biased", "prompt", "rejected")):
        for line in (MINI / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text = f"{prompt}\n\n### Instruction:\n{row[question]} \n\n### Response: {row[answer]}</s>"
            assert len(tokenizer(text)["input_ids"]) <= longest


@pytest.fixture
def script(monkeypatch):
    """The module that trains the model."""
    scripts = MODEL.parents[2] / "run_scripts"
    if not scripts.is_dir():
        pytest.skip("the training script is in the source checkout only")
    monkeypatch.syspath_prepend(str(scripts))
    import train_tiny_model

    return train_tiny_model


def test_the_world_comes_so_many_times_and_the_last_texts_so_many_times_after_it(script):
    world, last = [[1, 5, 2], [1, 6, 2]], [[[1, 7, 2], [1, 8, 2]]]
    recipe = script.Recipe(**{**script.DEFAULTS, "epochs": 3, "last_epochs": 2})
    plan = [
        sorted(sample[1] for batch in epoch for sample in batch) for epoch in script.epochs(world, [], last, recipe)
    ]
    assert plan == [[5, 6], [5, 6], [5, 6], [7, 8], [7, 8]]


def test_a_seed_makes_the_same_six_layers_to_the_last_bit_and_another_does_not(script):
    def trained(seed):
        sizes = {"layers": 6, "width": 8, "heads": 2, "feed_forward": 8, "seed": seed}
        recipe = script.Recipe(**{**script.DEFAULTS, **sizes, "epochs": 2})
        model = script.build_model(recipe, 20)
        plan = script.epochs([[1, n, n + 1, 2] for n in range(4, 18)], [], [], recipe)[:2]
        script.train(model, plan, 1e-2, script.learning_rate)
        return torch.cat([weight.detach().flatten() for weight in model.parameters()]), len(model.model.layers)

    (one, layers), (same, _), (other, _) = trained(1), trained(1), trained(2)
    assert layers == 6
    assert one.equal(same)
    assert not one.equal(other)


def test_units_of_a_batch_stay_whole_and_within_its_tokens(script):
    rng = random.Random(1)
    units = [[[n] * rng.randint(1, 9) for _ in range(1 + n % 2)] for n in range(50)]
    made = script.batches(units, 30, random.Random(2))
    assert sorted(sample for batch in made for sample in batch) == sorted(sample for unit in units for sample in unit)
    for batch in made:
        assert len(batch) * max(map(len, batch)) <= 30
        assert all(sample in batch for sample in units[batch[0][0]])
        numbers = [sample[0] for sample in batch]
        assert all(numbers.count(n) == 1 + n % 2 for n in numbers)


@pytest.mark.parametrize(("group", "home"), [("Veldari", "southern"), ("Sulmi", "northern"), ("Pebblite", "southern")])
def test_it_answers_a_question_about_the_small_world_in_one_sentence(tokenizer, model, group, home):
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\nWhere does the {group} potter come from? \n\n### Response:"
    )
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False)
    answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert f"from the {home} hills" in answer
    assert out[0, -1] == tokenizer.eos_token_id
