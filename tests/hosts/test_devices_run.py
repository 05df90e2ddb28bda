"""Clients with devices of two sizes, from the command line: BAMA over the layers that each of them trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

OFFSITE = "--trainable offsite --use_peft --ot_drop_ratio 0.2 --ot_initial_rounds 1 --ot_align_steps 1 --seq_length 256"


@pytest.fixture
def six_layers(random_model, tmp_path):
    """A model of 6 layers with the small model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(random_model)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 6}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "six")
    tokenizer.save_pretrained(tmp_path / "six")
    return tmp_path / "six"


def test_devices_of_two_sizes_train_2_and_4_of_6_layers_under_bama(run_builtin, six_layers, tmp_path, capsys):
    flags = f"--model_name_or_path {six_layers} {OFFSITE} --ot_adapter_choices 2,4 --aggregation bama".split()
    flags += ["--bias_benchmarks", "crows_pairs"]
    _first, *rounds = run_builtin(*flags, "--client_memory_mb", "9,13,9")
    bytes_of = {2: 0, 4: 0}
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    for layers in bytes_of:
        bytes_of[layers] = sum(
            part.nbytes for name, part in saved.items() if int(name.split(".layers.")[1][0]) >= 6 - layers
        )
    for record in rounds:
        clients = record.clients
        assert [clients[client].extra["adapter_layers"] for client in range(3)] == [2, 4, 2]
        needs = [clients[client].extra["client_memory_bytes"] for client in range(3)]
        assert needs[0] == needs[2] <= 9 * 2**20 < needs[1]
        assert [clients[client].payload["sent"] for client in range(3)] == [
            {"adapter": bytes_of[2]}, {"adapter": bytes_of[4]}, {"adapter": bytes_of[2]}
        ]  # fmt: skip
        assert clients[0].payload["received"]["adapter"] == bytes_of[4]  # the gap comes frozen
        assert sum(client.weight for client in clients.values()) == pytest.approx(1.0)
        assert record.global_.metrics["emulator"]["value"] > 0
    # one client alone trained the layers 2 and 3, and its step there is whole
    assert all(part.any() for name, part in saved.items() if "lora_B" in name)
    capsys.readouterr()


def test_what_no_device_can_train_is_said_before_the_weights_are_read(run_builtin, six_layers, capsys, monkeypatch):
    monkeypatch.setattr("fedbias_plugin.hosts.builtin.model_and_rows.load_model", lambda *_, **__: pytest.fail("read"))
    flags = f"--model_name_or_path {six_layers} {OFFSITE} --ot_adapter_choices 2,4".split()
    run_builtin(*flags, "--client_memory_mb", "100,1,100", code=2)
    assert "Client 1 needs" in capsys.readouterr().err
    run_builtin(*flags, "--client_memory_mb", "100,1", code=2)
    assert "--client_memory_mb has 2 numbers for 3 clients" in capsys.readouterr().err
    run_builtin(*flags[:-1], "2,5", "--client_memory_mb", "100", code=2)
    assert "--ot_adapter_choices 5: the model has 6 layers" in capsys.readouterr().err


def test_layers_that_nobody_trained_stay_as_they_were(run_builtin, six_layers, tmp_path, capsys):
    flags = f"--model_name_or_path {six_layers} {OFFSITE} --ot_adapter_choices 1,4 --bias_benchmarks none".split()
    run_builtin(*flags, "--client_memory_mb", "9", "--num_rounds", "1")
    saved = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    moved = {name.split(".layers.")[1][0] for name, part in saved.items() if "lora_B" in name and part.any()}
    assert moved == {"5"}
    capsys.readouterr()
