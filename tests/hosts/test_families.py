"""Every model of ``configs/models``: a tiny random one of its architecture trains under the flags of the file."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fedbias_plugin.sweep.configs import load_model
from fedbias_plugin.tracking.records import RoundRecord
from tests.hosts.families import FAMILIES, write_model

MODELS = Path(__file__).parents[2] / "configs/models"
FAMILY_OF = {
    "llama3_8b": "llama",
    "llama2_7b": "llama",
    "mistral_7b": "mistral",
    "phi3_mini": "phi3",
    "gemma2_2b": "gemma2",
    "gemma2_9b": "gemma2",
    "distilgpt2": "gpt2",
}
ATTENTION = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "phi3": {"qkv_proj", "o_proj"},
    "gemma2": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gpt2": {"c_attn"},
}
IN_8_BITS = [name for name in FAMILY_OF if load_model(MODELS / f"{name}.yaml").arguments.get("load_in_8bit")]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of a model."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        write_model(folder, family)
    return folders


def as_flags(arguments: dict[str, Any]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def assert_sound(records: list[RoundRecord]) -> None:
    assert [record.round for record in records] == [0, 1]
    assert all(record.global_.metrics["heldout_loss"]["loss"] > 0 for record in records)
    clients = records[1].clients.values()
    assert sum(client.weight for client in clients) == pytest.approx(1)
    for client in clients:
        assert math.isfinite(client.bias_score)
        assert 0 < client.train_loss < 2 * math.log(400)
        assert 0 < client.update_norm < 1e3


def test_every_file_has_a_family_that_is_tried() -> None:
    assert {path.stem for path in MODELS.glob("*.yaml")} == {*FAMILY_OF, "tiny", "tiny6"}
    assert set(FAMILY_OF.values()) == set(FAMILIES)


def test_every_file_loads_in_8_bits_but_the_small_one_s_and_that_of_runs_published_without() -> None:
    assert set(FAMILY_OF) - set(IN_8_BITS) == {"distilgpt2", "llama2_7b"}


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        *(pytest.param(name, False, id=f"{name}-plain") for name in FAMILY_OF),
        *(pytest.param(name, True, id=f"{name}-8bit", marks=needs_bitsandbytes) for name in IN_8_BITS),
    ],
)
def test_the_flags_of_a_file_train_its_architecture_with_adapters_on_its_attention_alone(
    run_builtin, models, tmp_path, name, quantised
):
    arguments = dict(load_model(MODELS / f"{name}.yaml").arguments)
    family = FAMILY_OF[name]
    arguments |= {"model_name_or_path": str(models[family]), "load_in_8bit": quantised}
    records = run_builtin(*as_flags(arguments), "--num_rounds", "1", "--aggregation", "bama")
    assert_sound(records)
    adapter = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    assert {key.split(".lora_")[0].rpartition(".")[2] for key in adapter} == ATTENTION[family]
    assert len(adapter) == 2 * 2 * len(ATTENTION[family])  # layers, A and B
    assert {tensor.shape[0] for key, tensor in adapter.items() if "lora_A" in key} == {32}
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["peft_lora_alpha"] == 64


@pytest.mark.parametrize("name", ["phi3_mini", "gemma2_2b", "distilgpt2"])
def test_every_weight_trains_under_the_full_finetuning_flags(run_builtin, models, tmp_path, name):
    model = load_model(MODELS / f"{name}.yaml")
    kept = {flag: value for flag, value in model.arguments.items() if not flag.startswith(("peft_", "load_in_"))}
    arguments = kept | model.full_finetuning
    arguments |= {"use_peft": False, "model_name_or_path": str(models[FAMILY_OF[name]])}
    assert_sound(run_builtin(*as_flags(arguments), "--num_rounds", "1", "--aggregation", "bama"))
    weights = load_file(tmp_path / "run/model/model.safetensors")
    before = load_file(models[FAMILY_OF[name]] / "model.safetensors")
    trained = [key for key in before if key.endswith(("proj.weight", "c_attn.weight", "c_fc.weight"))]
    assert trained
    assert all(not weights[key].float().equal(before[key].float()) for key in trained)
