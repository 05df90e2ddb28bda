"""What the plan of a sweep says of GPU memory."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoConfig

from fedbias_plugin.cli.main import main
from fedbias_plugin.configs_folder import find_config
from fedbias_plugin.sweep import memory_plan
from fedbias_plugin.sweep.configs import load_experiment, load_model
from fedbias_plugin.sweep.memory_estimate import memory_estimate
from fedbias_plugin.sweep.plan import plan_runs


@pytest.fixture(autouse=True)
def machine_without_models_and_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def lines(name: str, overrides: dict[str, object] | None = None, path: object = None) -> list[str]:
    model = load_model(path or find_config("models", name, "--model"))
    experiment = load_experiment(find_config("experiments", "table1", "experiment"))
    return memory_plan.memory_lines(model, plan_runs([experiment], model, overrides or {}))


def test_the_bundled_model_needs_no_gpu():
    assert lines("tiny") == []


def test_a_model_that_is_not_here_shows_what_its_file_says_and_for_which_flags():
    (line,) = lines("gemma2_2b")
    assert line == ("GPU memory of one run (estimate, with the flags of the model's file): 16 GiB to train adapters")


def test_a_model_that_is_here_is_counted_with_the_flags_of_the_runs(random_model, tmp_path):
    path = tmp_path / "mine.yaml"
    arguments = f"{{model_name_or_path: '{random_model}', use_peft: true, seq_length: 512}}"
    path.write_text(f"name: mine\nmemory_gib: {{train: 77.0}}\narguments: {arguments}\n")
    for batch in (16, 4096):
        (line,) = lines("mine", {"batch_size": batch}, path)
        flags = {"use_peft": True, "seq_length": 512, "batch_size": batch}
        gib = memory_estimate(AutoConfig.from_pretrained(random_model), flags).train_gib
        assert line == f"GPU memory of one run (estimate, counted with these flags): {gib:.0f} GiB to train adapters"
    assert gib > 5


def test_a_gpu_that_is_too_small_is_told_before_the_sweep_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("", (), {"total_memory": 12 * 2**30}))
    (line,) = lines("gemma2_2b")
    assert line.endswith("16 GiB to train adapters; the GPU has 12: TOO LITTLE")


def test_the_plan_shows_it(random_model, small_data, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\narguments: {{model_name_or_path: '{random_model}', use_peft: true}}\n")
    where = ["--data_dir", str(small_data), "--client_samples", "8", "--heldout_samples", "2"]
    assert main(["sweep", "table1", "--model", str(path), *where, "--output", str(tmp_path / "out"), "--dry_run"]) == 0
    assert re.search(r"^GPU memory of one run \(estimate, counted", capsys.readouterr().out, re.MULTILINE)
