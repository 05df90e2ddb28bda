"""What a patched host records offline in W&B: the plugin's names, and every adapter that the host's script saves."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.tracking.wandb_records import items, kinds, offline_records


def test_a_patched_host_is_named_alike_and_what_its_script_saves_are_artifacts(patched, start, small_data):
    pytest.importorskip("wandb", reason="the wandb package is not installed")
    flags = "--scenario 1B2C --client_samples 8 --heldout_samples 4 --aggregation bama --bama_crows_fraction 0.5"
    flags += f" --bama_stereoset_fraction 0.5 --data_dir {small_data} --track jsonl,wandb --wandb_mode offline --seed 7"
    output, _ = start(patched, "main_sft.py", *flags.split())
    records = offline_records(output)
    (opened,) = kinds(records, "run")
    assert opened.display_name.endswith(" fedavg 1B2C bama 2/3 seed 7")
    assert opened.job_type == "federated"
    assert {"alg:fedavg", "scenario:1B2C", "agg:bama", "clients:2/3", "tuning:lora"} <= set(opened.tags)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    history = [items(row.item) for row in kinds(records, "history")]
    for line, row in zip(lines, history, strict=True):
        assert row["bias/bias_score"] == line["global"]["bias_score"]
    adapters = [artifact for artifact in kinds(records, "artifact") if artifact.type == "adapter"]
    aliases = [sorted(set(artifact.aliases) - {"latest"}) for artifact in adapters]
    own = [["round-1"]] if detect_stack() == "current" else []  # the pinned libraries pickle the host's weights
    assert aliases == [*own, ["final", "round-2"]]
    for artifact in adapters:
        names = {entry.path for entry in artifact.manifest.contents}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= names
        assert not any(name.endswith(".bin") for name in names)  # the host pickles its arguments, logins included
