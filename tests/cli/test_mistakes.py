"""A mistake ends with exit code 2 and one line that names it, before a model loads and before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import transformers
from huggingface_hub import constants

from fedbias_plugin.cli.main import main


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """``refused("run", ...)`` -> what standard error says, line by line; no weights were loaded and no run begun."""

    def no_weights(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_weights)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> list[str]:
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert [line.startswith("fedbias: error: ") for line in lines] == [False] * (len(lines) - 1) + [True]
        assert "Traceback" not in out + err
        assert not (tmp_path / "run").exists()
        return lines

    return call


@pytest.fixture
def begun(random_model, small_data):
    """The flags of a run that would be right."""
    rows = ["--data_dir", small_data, "--client_samples", "8"]
    return ["run", "--model_name_or_path", random_model, "--output_dir", "run", "--max_steps", "2", *rows]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bama_lambda", "abc"), "--bama_lambda 'abc' (command line) must be a number"),
        (("--batch_size", "0"), "--batch_size must be at least 1, got 0"),
        (("--gradient_accumulation_steps", "0"), "--gradient_accumulation_steps must be at least 1, got 0"),
        (("--max_steps", "0"), "--max_steps must be at least 1, got 0"),
        (("--seq_length", "0"), "--seq_length must be at least 1, got 0"),
        (("--peft_lora_r", "0"), "--peft_lora_r must be at least 1, got 0"),
        (("--learning_rate", "nan"), "--learning_rate must be at least 1e-06, got nan"),
        (("--seed", str(2**70)), "--seed must be at least 0 and at most 4294967295"),
        (("--template", "llama3"), "--template 'llama3' is unknown; choose one of alpaca, vicuna, chat"),
        (("--use_peft", "--load_in_8bit", "--load_in_4bit"), "exclude each other"),
        (("--load_in_8bit",), "add --use_peft"),
        (("--data_dir", "nowhere"), "--data_dir names the folder nowhere, which does not exist"),
        (("--model_name_or_path", "./nowhere"), "'./nowhere': there is no such folder"),
        (("--model_name_or_path", "some/name"), "HF_HUB_OFFLINE is set"),
        (("--output_dir", "/proc/run"), "--output_dir /proc/run cannot be made: /proc takes no files"),
    ],
)
def test_a_wrong_flag_of_a_run_is_said_in_one_line(refused, begun, flags, message):
    (line,) = refused(*begun, *flags)
    assert message in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--clean_dataset", "nowhere.json"), "nowhere.json: there is no such file"),
        (("--clean_dataset", "rows.txt"), "rows.txt: the format is told by the suffix"),
        (("--client_samples", "400"), "the largest --client_samples that fits is"),
        (("--seq_length", "8"), "has no token to train on: --seq_length 8 cuts the response off in all 8 rows"),
        (("--use_peft", "--peft_lora_target_modules", "query"), "LoRA does not fit this LlamaForCausalLM"),
    ],
)
def test_what_only_rows_or_the_models_shape_can_tell_is_found_before_its_weights_load(
    refused, begun, tmp_path, flags, message
):
    (tmp_path / "rows.txt").write_text("a")
    assert message in refused(*begun, *flags)[-1]


def test_rows_longer_than_the_model_has_positions_are_refused_before_its_weights_load(
    refused, begun, random_model, tmp_path
):
    model = shutil.copytree(random_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    assert "but the model has 64 positions" in refused(*begun, "--model_name_or_path", model)[-1]


def test_a_quantised_run_without_bitsandbytes_is_refused_first_of_all(refused, begun, monkeypatch):
    from fedbias_plugin import preflight

    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: None)
    (line,) = refused(*begun, "--use_peft", "--load_in_8bit")
    assert "--load_in_8bit needs bitsandbytes, which is not installed" in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adapter", "nowhere"), "--adapter nowhere holds no adapter_config.json"),
        (("--load_in_8bit", "--load_in_4bit"), "exclude each other"),
        (("--model_name_or_path", "some/name"), "HF_HUB_OFFLINE is set"),
        (("--model_name_or_path", "./nowhere"), "there is no such folder"),
        (("--data_dir", "nowhere"), "--data_dir names the folder nowhere"),
        (("--bias_batch_tokens", "abc"), "must be a whole number"),
    ],
)
def test_a_wrong_flag_of_an_evaluation_is_said_in_one_line(refused, small_data, flags, message):
    (line,) = refused("evaluate", "--model_name_or_path", "tiny", "--data_dir", small_data, *flags)
    assert message in line


def test_an_adapter_for_other_modules_is_refused_before_the_weights_load(refused, small_data, tmp_path):
    from fedbias_plugin.assets import TINY_MODEL

    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["query"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(TINY_MODEL / "model.safetensors", tmp_path / "adapter_model.safetensors")
    flags = ["--model_name_or_path", "tiny", "--data_dir", small_data, "--adapter", tmp_path]
    assert "does not fit --model_name_or_path: Target modules" in refused("evaluate", *flags)[-1]


def test_a_sweep_whose_model_cannot_be_had_starts_no_run(refused, tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\narguments: {model_name_or_path: some/name}\n")
    (line,) = refused("sweep", "table1", "--model", "mine.yaml", "--data_dir", "mini", "--output", "run")
    assert "HF_HUB_OFFLINE is set" in line


def test_the_command_itself_prints_one_line_for_a_number_that_is_none():
    command = [sys.executable, "-m", "fedbias_plugin", "run", "--bama_lambda", "abc"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fedbias: error: --bama_lambda 'abc' (command line) must be a number.\n"
