"""Checks that need no model: each says in one sentence what is wrong, where, and what would be right."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fedbias_plugin import preflight
from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.data import hub
from fedbias_plugin.errors import UserError
from fedbias_plugin.preflight import (
    check_adapter,
    check_bitsandbytes,
    check_host_data,
    check_model,
    check_quantisation,
    check_responses_fit,
    check_training_numbers,
)


@pytest.fixture
def folder(random_model: Path, tmp_path: Path) -> Path:
    """A complete model that a test may damage."""
    return Path(shutil.copytree(random_model, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def put_in_cache(cache: Path, model: Path, name: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc123")
    return Path(shutil.copytree(model, repository / "snapshots/abc123"))


def test_importing_it_imports_neither_torch_nor_transformers():
    code = "import sys, fedbias_plugin.preflight; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("gradient_accumulation_steps", 0),
        ("seq_length", 0),
        ("peft_lora_r", 0),
        ("peft_lora_alpha", 0),
        ("max_steps", -1),
        ("learning_rate", -1e-9),
        ("learning_rate", float("nan")),
        ("seed", -1),
        ("seed", 2**32),
    ],
)
def test_a_number_that_nothing_can_be_trained_with_is_named(name, value):
    with pytest.raises(UserError, match=rf"^--{name} must be .*, got {value}"):
        check_training_numbers(SimpleNamespace(**{name: value}))


def test_numbers_that_a_fork_lacks_and_steps_that_epochs_replace_are_left_alone():
    check_training_numbers(SimpleNamespace())
    check_training_numbers(SimpleNamespace(max_steps=-1, learning_rate=None, seed=2**32 - 1), local_epochs=1)


def test_quantisation_flags_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="exclude each other"):
        check_quantisation(True, True)
    with pytest.raises(UserError, match="cannot be trained whole; add --use_peft"):
        check_quantisation(False, True, use_peft=False)
    check_quantisation(True, False)
    check_quantisation(False, False, use_peft=False)


def test_a_quantised_model_needs_bitsandbytes_and_an_unquantised_one_does_not(monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    check_bitsandbytes(False, False)
    with pytest.raises(UserError, match=r"--load_in_4bit needs bitsandbytes.*pip install bitsandbytes"):
        check_bitsandbytes(False, True)


@pytest.mark.parametrize(
    ("library", "runs_on_cpu", "message"),
    [
        ({"supported_torch_devices": {"cpu", "cuda"}}, True, None),
        ({"supported_torch_devices": {"cpu", "cuda"}}, False, "--load_in_8bit needs a GPU here"),
        ({"supported_torch_devices": {"cuda"}}, True, r"bitsandbytes 0\.50.* quantises nothing on a CPU"),
        ({}, True, "quantises nothing on a CPU: pip install -U bitsandbytes"),
    ],
)
def test_without_a_gpu_a_quantised_model_needs_a_bitsandbytes_for_cpus(monkeypatch, library, runs_on_cpu, message):
    torch = pytest.importorskip("torch")
    transformers_utils = pytest.importorskip("transformers.utils")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(transformers_utils, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(preflight, "installed_version", lambda name: "0.50.2")
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(**library))
    if message is None:
        check_bitsandbytes(True, False, runs_on_cpu=runs_on_cpu)
        monkeypatch.setattr(transformers_utils, "is_bitsandbytes_available", lambda: False)
        message = "too old for this Transformers"
    with pytest.raises(UserError, match=message):
        check_bitsandbytes(True, False, runs_on_cpu=runs_on_cpu)


@pytest.mark.parametrize("name", ["./no/such", "/no/such", "a/b/c", "~/no/such", "a b", "", "a/../b"])
def test_a_missing_folder_is_not_asked_of_the_hub(name):
    with pytest.raises(UserError, match="there is no such folder"):
        check_model(name)


def test_a_model_whose_weights_are_cut_off_or_incomplete_is_named_by_the_file(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"holds a damaged or unfinished model\.safetensors \(.*\); copy it again"):
        check_model(str(folder))
    weights.unlink()
    (folder / "model-00001-of-00002.safetensors").write_bytes(whole)
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002\.safetensors, one of the 2 files"):
        check_model(str(folder))
    index.write_text("{}")
    with pytest.raises(UserError, match=r"holds a damaged model\.safetensors\.index\.json"):
        check_model(str(folder))


def test_pickled_weights_are_enough_for_a_host_that_loads_them(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert check_model(str(folder), pickled_weights=True) == str(folder)
    with pytest.raises(UserError, match="pickled weights only"):
        check_model(str(folder))


def test_tiny_is_the_bundled_folder(monkeypatch, tmp_path):
    assert check_model("tiny") == str(TINY_MODEL)
    monkeypatch.setattr(preflight, "TINY_MODEL", tmp_path / "nowhere")
    with pytest.raises(UserError, match="bundled model is missing"):
        check_model("tiny")


def test_offline_a_hub_name_is_refused_at_once_unless_the_cache_holds_all_of_it(cache, offline, random_model):
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and the cache .*hf download some/name"):
        check_model("some/name")
    check_model("some/name", asks_hub=False)
    snapshot = put_in_cache(cache, random_model, "some/name")
    assert check_model("some/name") == "some/name"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="does not hold all of it"):
        check_model("some/name")


def test_a_hub_that_does_not_answer_is_not_asked_again_and_again(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9 does not answer.*--model_name_or_path tiny"):
        check_model("some/name")


def test_what_the_hub_says_to_a_name_is_passed_on(cache, monkeypatch):
    import huggingface_hub

    def refuse(*args: str) -> None:
        raise OSError("401 Client Error.\nCannot access gated repo")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"the Hugging Face hub did not give it: 401 Client Error\. Fetch it"):
        check_model("some/name")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args: "config.json")
    assert check_model("some/name") == "some/name"


def test_a_folder_without_an_adapter_is_refused_by_the_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"holds no adapter_config\.json"):
        check_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UserError, match=r"holds no adapter_model\.safetensors"):
        check_adapter(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").touch()
    check_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "task_type": "SEQ_CLS"}')
    with pytest.raises(UserError, match=r"is of a classifier \(--task classify\)"):
        check_adapter(str(tmp_path))


def test_a_missing_file_of_a_host_is_named_and_a_forgotten_slash_pointed_at(tmp_path):
    (tmp_path / "rows").mkdir()
    check_host_data(str(tmp_path / "rows"))
    check_host_data("rows", f"{tmp_path}/")
    with pytest.raises(UserError, match=rf"there is no {tmp_path}rows. End --local_data_dir with a slash: {tmp_path}/"):
        check_host_data("rows", str(tmp_path))
    with pytest.raises(UserError, match=r"there is no \./nothing"):
        check_host_data("./nothing")


@pytest.mark.parametrize("folder", ["datasets/some___data_set", "datasets/some___parquet/some--DataSet-0a1b"])
def test_offline_a_hosts_data_set_must_be_in_a_cache(cache, offline, folder):
    with pytest.raises(UserError, match=r"--dataset_name 'some/DataSet' is not on this machine, and HF_HUB_OFFLINE"):
        check_host_data("some/DataSet")
    (cache.parent / folder).mkdir(parents=True)
    check_host_data("some/DataSet")


def test_a_client_that_would_train_on_nothing_is_refused():
    check_responses_fit(1, rows=4, trainable=True, first="clean:7", seq_length=8)
    with pytest.raises(
        UserError, match=r"Client 1 has no token to train on: --seq_length 8 .* 4 rows \(such as clean:7"
    ):
        check_responses_fit(1, rows=4, trainable=False, first="clean:7", seq_length=8)
