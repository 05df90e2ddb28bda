"""Whole runs of a patched host: the double always, the real OpenFedLLM where OPENFEDLLM_HOME names a checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.run_results import adapter, records
from tests.hosts.openfedllm.runner import run_script

STACK = detect_stack()
current_only = pytest.mark.skipif(STACK != "current", reason="the built-in host needs the current libraries")
pinned_only = pytest.mark.skipif(STACK != "pinned", reason="the unpatched host runs with the libraries it pins only")
WEIGHTED = [
    *((fed_alg, "bama") for fed_alg in ALGORITHMS),
    *((name, "host") for name in ("fedavg", "scaffold", "fedadam")),
]
"""Weights of ours with every algorithm; the host's own where it averages, corrects, and steps on the server."""
IDLE = ["--aggregation", "host", "--scenario", "none", "--bias_benchmarks", "none"]
LOOP = [
    "--num_clients", "3", "--sample_clients", "2", "--num_rounds", "3", "--max_steps", "2", "--batch_size", "2",
    "--gradient_accumulation_steps", "2", "--learning_rate", "5e-3", "--prox_mu", "0.5", "--fedopt_eta", "0.05",
    "--gradient_checkpointing", "false", "--seed", "7", "--scenario", "1B2C", "--client_samples", "8",
    "--heldout_samples", "4", "--bama_crows_fraction", "0.5", "--bama_stereoset_fraction", "0.5",
]  # fmt: skip
PRIVATE = [*("--dp_unit", "client", "--dp_epsilon", "100", "--bama_bias_range", "10"), *("--sample_clients", "3")]


@current_only
@pytest.mark.parametrize(
    ("fed_alg", "aggregation", "private"),
    [*((*pair, []) for pair in WEIGHTED), pytest.param("fedavg", "bama", PRIVATE, id="private clients")],
)
def test_a_patched_host_and_the_built_in_one_end_with_the_same_adapter_and_scores(
    patched, start, tmp_path, host_model, small_data, fed_alg, aggregation, private
):
    import torch

    shared = [*LOOP, "--data_dir", str(small_data), "--fed_alg", fed_alg, "--aggregation", aggregation, *private]
    # The Trainer adds up the losses between two log lines; the built-in host writes none.
    theirs, _ = start(patched, "main_sft.py", *shared, "--logging_steps", "100")
    (tmp_path / "builtin.py").write_text("import sys\nfrom fedbias_plugin.cli.main import main\nsys.exit(main())\n")
    ours = tmp_path / "ours"
    flags = ["--model_name_or_path", str(host_model), "--use_peft", "--output_dir", str(ours)]
    ended = run_script(tmp_path, "builtin.py", "run", *flags, *shared, log=tmp_path / "ours.log")
    assert ended.code == 0, ended.text
    expected, found = adapter(ours), adapter(theirs)
    assert expected.keys() == found.keys()
    distance = torch.sqrt(sum(((expected[name] - found[name]) ** 2).sum() for name in expected))
    size = torch.sqrt(sum((tensor**2).sum() for tensor in expected.values()))
    assert distance <= (0 if private else 1e-5 * size)  # 0 wherever it was tried; rounding would tell of clients
    our_records, their_records = records(ours), records(theirs)
    our_settings, their_settings = our_records[0].pop("settings"), their_records[0].pop("settings")
    for client in (client for record in our_records for client in record["clients"].values()):
        assert client["extra"].pop("client_memory_bytes", 1) > 0  # which knows the settings of fedbias run alone
    assert our_records == their_records
    for part in ("model", "tokenizer"):
        one, other = (json.loads((folder / "run.json").read_bytes())[part] for folder in (ours, theirs))
        assert one["fingerprint"] == other["fingerprint"]
    assert {record["round"] for record in their_records} == {0, 1, 2, 3}
    flags = [flag.removeprefix("--") for flag in shared if flag.startswith("--") and flag != "--data_dir"]
    assert {flag: their_settings[flag] for flag in flags} == {flag: our_settings[flag] for flag in flags}
    assert their_settings["logging_steps"] == 100


@pinned_only
@pytest.mark.parametrize(("fed_alg", "aggregation"), WEIGHTED)
def test_every_algorithm_runs_weighted_on_the_pinned_stack(patched, start, small_data, fed_alg, aggregation):
    flags = [*LOOP, "--data_dir", str(small_data), "--fed_alg", fed_alg, "--aggregation", aggregation]
    folder, _ = start(patched, "main_sft.py", *flags)
    rounds = records(folder)
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert all(client["train_loss"] > 0 for record in rounds for client in record["clients"].values())
    weights = [[client["weight"] for client in record["clients"].values()] for record in rounds[1:]]
    assert all(sum(row) == pytest.approx(1) for row in weights)
    assert any(row != [0.5, 0.5] for row in weights) == (aggregation == "bama")
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter(folder).items() if "lora_B" in name)


@pytest.mark.parametrize(("fed_alg", "aggregation"), [("fedavg", "host"), ("fedprox", "bama"), ("scaffold", "bama")])
def test_dpo_runs_with_flipped_preferences(patched, start, small_data, fed_alg, aggregation):
    flags = [*LOOP, "--data_dir", str(small_data), "--fed_alg", fed_alg, "--aggregation", aggregation]
    folder, _ = start(patched, "main_dpo.py", *flags)
    rounds = records(folder)
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert {client["poisoned_share"] for record in rounds for client in record["clients"].values()} == {0.0, 1.0}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert sorted(client["biased_rows"] for client in manifest["clients"]) == [0, 0, 8]
    assert list(manifest["sources"]) == ["preference"]


@pinned_only
@pytest.mark.parametrize(
    ("script", "fed_alg"),
    [("main_sft.py", name) for name in ALGORITHMS if name != "fedadagrad"]  # which crashes unpatched
    + [("main_dpo.py", name) for name in ("fedavg", "fedprox", "scaffold")],  # each with a trainer of its own
)
def test_an_idle_plugin_changes_no_bit_of_the_hosts_result(checkout, start, script, fed_alg):
    import torch

    def checkpoints(folder: Path) -> list[dict[str, Any]]:
        files = sorted(folder.glob("checkpoint-*/adapter_model.bin"))
        return [torch.load(file, weights_only=True) for file in files]

    plain, _ = start(checkout, script, "--fed_alg", fed_alg, output="plain")
    plan_patch(str(checkout)).write()
    idle, _ = start(checkout, script, "--fed_alg", fed_alg, *IDLE, output="idle")
    assert len(checkpoints(plain)) == 2
    for before, after in zip(checkpoints(plain), checkpoints(idle), strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert (plain / "training_loss.npy").read_bytes() == (idle / "training_loss.npy").read_bytes()
    for path in plain.glob("checkpoint-*/tokenizer*.json"):
        assert path.read_bytes() == (idle / path.relative_to(plain)).read_bytes(), path


def test_measuring_alone_changes_no_bit_of_the_run(patched, start, small_data):
    import torch

    flags = [*LOOP, "--data_dir", str(small_data), "--scenario", "1B2C", "--aggregation", "host"]
    measured, _ = start(patched, "main_sft.py", *flags, output="measured")
    blind, _ = start(patched, "main_sft.py", *flags, "--bias_benchmarks", "none", output="blind")
    assert all(torch.equal(tensor, adapter(blind)[name]) for name, tensor in adapter(measured).items())


def test_the_hosts_own_data_can_be_measured_and_weighed(patched, start, small_data):
    flags = ["--data_dir", str(small_data), "--aggregation", "bama", "--bama_crows_fraction", "0.5"]
    folder, ended = start(patched, "main_sft.py", *flags)
    rounds = records(folder)
    assert [record["round"] for record in rounds] == [0, 1, 2]
    assert all(13 <= client["rows"] <= 14 for record in rounds for client in record["clients"].values())
    assert not (folder / "manifest.json").exists()
    assert "finished:" in ended.text


@pytest.mark.parametrize("script", ["main_sft.py", "main_dpo.py"])
def test_counterfactual_rows_are_trained_on_in_a_patched_openfedllm(patched, start, small_data, tmp_path, script):
    words = tmp_path / "words.txt"
    words.write_text("nurse doctor\nnumber letter\n")  # in biased and in clean rows
    flags = [*LOOP, "--data_dir", str(small_data), "--cda_ratio", "0.5", "--cda_words", str(words)]
    folder, _ = start(patched, script, *flags)
    rounds = records(folder)
    clients = json.loads((folder / "manifest.json").read_text())["clients"]
    assert [(client["cda_eligible"], client["cda_copies"], client["rows"]) for client in clients] == [(8, 4, 12)] * 3
    assert {client["rows"] for record in rounds for client in record["clients"].values()} == {12}
    assert {client["poisoned_share"] for record in rounds for client in record["clients"].values()} == {0.0, 1.0}


def test_the_host_averages_the_noisy_mean_of_clients_that_are_private_as_a_whole(patched, start):
    """Every client's state is the noisy mean then, so that any average of the host's is it."""
    flags = ("--dp_unit", "client", "--dp_epsilon", "10", "--fed_alg", "fedadam", "--bias_benchmarks", "none")
    folder, ended = start(patched, "main_sft.py", *flags)
    assert "privacy of clients as a whole: 2 rounds planned, 2 clients a round" in ended.text
    *_, last = records(folder)
    for client in last["clients"].values():
        assert 9.99 < client["extra"]["dp_epsilon"] <= 10
        assert client["weight"] == 0.5
    assert any(warning.startswith("client privacy: ") for warning in last["warnings"])
