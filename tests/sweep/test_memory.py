"""What the plan of a sweep says of GPU memory, and whether ``configs/models`` states what the architectures take."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from fedbias_plugin.configs_folder import find_config
from fedbias_plugin.sweep.configs import ModelConfig, load_experiment, load_model
from fedbias_plugin.sweep.plan import plan_runs
from fedbias_plugin.sweep.preparation import memory_lines
from tests.sweep.memory_estimate import GIB, memory_estimate

MODELS = Path(__file__).parents[2] / "configs/models"
# As published with the models: kind, hidden size, MLP size, layers, heads, key-value heads, vocabulary, and what else.
PUBLISHED = {
    "llama3_8b": ("llama", 4096, 14336, 32, 32, 8, 128256, {}),
    "llama2_7b": ("llama", 4096, 11008, 32, 32, 32, 32000, {}),
    "mistral_7b": ("mistral", 4096, 14336, 32, 32, 8, 32768, {"sliding_window": None}),
    "phi3_mini": ("phi3", 3072, 8192, 32, 32, 32, 32064, {"sliding_window": 2047}),
    "gemma2_2b": ("gemma2", 2304, 9216, 26, 8, 4, 256000, {"head_dim": 256}),
    "gemma2_9b": ("gemma2", 3584, 14336, 42, 16, 8, 256000, {"head_dim": 256}),
    "distilgpt2": ("gpt2", 768, 3072, 6, 12, 12, 50257, {}),
}
SMALL = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 100}
ROWS = {"batch_size": 2, "seq_length": 5}  # 10 tokens
# A layer of SMALL: q, k, v, o of 8 x 8, gate and up of 8 x 16, down of 16 x 8. Norms of 8: two a layer, one at the end.
LINEAR = 3 * (4 * 64 + 3 * 128)
EMBEDDINGS = 2 * 100 * 8
PARAMETERS = LINEAR + EMBEDDINGS + (2 * 3 + 1) * 8
IN_AND_OUT = 3 * (4 * 16 + 3 * 24)


def published(name: str):
    kind, hidden, mlp, layers, heads, kv_heads, vocabulary, more = PUBLISHED[name]
    return AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        **more,
    )


def small():
    return AutoConfig.for_model("llama", **SMALL)


def test_training_every_weight_in_float32_counts_each_term_as_by_hand():
    found = memory_estimate(small(), {**ROWS, "gradient_checkpointing": False})
    assert found.parameters == found.trained == PARAMETERS
    assert (found.weights, found.training) == (4 * PARAMETERS, 12 * PARAMETERS)
    assert found.activations == 10 * 4 * IN_AND_OUT
    assert found.logits == 10 * 100 * (12 + 8)
    assert found.load_gib == 1 + 4 * PARAMETERS / GIB
    assert found.train_gib == pytest.approx(
        1 + (16 * PARAMETERS + 10 * 4 * IN_AND_OUT + 10 * 100 * 20) / GIB, abs=1e-12
    )


def test_checkpointing_keeps_one_layer_and_the_states_before_each():
    found = memory_estimate(small(), {**ROWS, "gradient_checkpointing": True, "bf16": True})
    assert found.activations == 10 * 2 * (IN_AND_OUT / 3 + 3 * 8)
    assert found.logits == 10 * 100 * (12 + 4)


@pytest.mark.parametrize(("flag", "bytes_a_weight"), [("load_in_8bit", 1), ("load_in_4bit", 0.516)])
def test_quantisation_shrinks_the_linear_layers_and_adapters_are_all_that_is_trained(flag, bytes_a_weight):
    flags = {flag: True, "use_peft": True, "peft_lora_r": 4, "peft_lora_target_modules": "q_proj,down_proj"}
    found = memory_estimate(small(), {**ROWS, **flags, "gradient_checkpointing": False, "aggregation": "bama"})
    assert found.trained == 3 * 4 * (8 + 8 + 16 + 8)
    assert found.training == 16 * found.trained
    assert found.weights == pytest.approx(LINEAR * bytes_a_weight + 4 * (PARAMETERS - LINEAR))
    assert found.activations == 10 * (4 * IN_AND_OUT + 8 * 3 * (8 + 16))


def test_every_model_of_configs_is_known_to_this_test():
    assert {path.stem for path in MODELS.glob("*.yaml")} == {*PUBLISHED, "tiny", "tiny6"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_config_states_the_weights_and_the_memory_of_the_published_architecture(name):
    model = load_model(MODELS / f"{name}.yaml")
    assert model.name == name
    lora = memory_estimate(published(name), model.arguments)
    kept = {flag: value for flag, value in model.arguments.items() if not flag.startswith(("peft_", "load_in_"))}
    full = memory_estimate(published(name), {**kept, **model.full_finetuning, "use_peft": False})
    assert model.parameters == lora.parameters == full.parameters
    assert model.memory_gib == {
        "load": round(lora.load_gib, 1),
        "train": round(lora.train_gib, 1),
        "full_finetuning": round(full.train_gib, 1),
    }


@pytest.fixture
def lines(monkeypatch):
    """The memory lines of a plan on a machine without a GPU, or with one of some GiB."""

    def of(model: ModelConfig, experiment: str = "table1", gib: int | None = None) -> list[str]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gib is not None)
        found = type("", (), {"total_memory": (gib or 0) * GIB})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
        return memory_lines(model, plan_runs([load_experiment(find_config("experiments", experiment, "-"))], model))

    return of


def test_a_plan_says_what_a_run_of_each_kind_of_training_takes(lines):
    gemma = load_model(MODELS / "gemma2_2b.yaml")
    adapters = "needs about 16 GiB of GPU memory a run to train adapters, by the model's file"
    every = "needs about 48 GiB of GPU memory a run to train every weight, by the model's file"
    assert lines(gemma) == [adapters]
    assert lines(gemma, "table2") == [adapters, every]


def test_a_model_that_states_nothing_has_no_line(lines):
    assert lines(load_model(MODELS / "tiny.yaml"), gib=12) == []


def test_a_gpu_that_is_too_small_is_told_before_the_sweep_begins(lines):
    adapters, every = lines(load_model(MODELS / "gemma2_2b.yaml"), "table2", gib=20)
    assert adapters.endswith("; the GPU has 20")
    assert every.endswith("; the GPU has 20: TOO LITTLE")
