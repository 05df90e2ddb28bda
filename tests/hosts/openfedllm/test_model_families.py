"""LLaMA 3, Mistral, Phi-3 and Gemma 2 in a patched host: tiny random models, tokenizers of the family's shape."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.families import FAMILIES, write_model
from tests.hosts.openfedllm.runner import run_script, sft_flags

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the pinned libraries have none of these but Llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_the_family_trains_in_a_patched_host(double, tmp_path, host_data, small_data, family):
    folder = tmp_path / family
    write_model(folder, family)
    plan_patch(str(double)).write()
    output = tmp_path / "out"
    flags = ["--num_rounds", "1", "--scenario", "1B2C", "--sample_clients", "3", "--client_samples", "8"]
    flags += [
        "--aggregation",
        "bama",
        "--data_dir",
        str(small_data),
        "--bias_benchmarks",
        "crows_pairs",
        "--bama_crows_fraction",
        "0.5",
    ]
    run = run_script(double, "main_sft.py", *sft_flags(folder, host_data, output), *flags, log=tmp_path / "log")
    assert run.code == 0, run.text[-3000:]
    metrics = next(output.iterdir()) / "metrics.jsonl"
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert all(client["train_loss"] > 0 and client["update_norm"] > 0 for client in last["clients"].values())
