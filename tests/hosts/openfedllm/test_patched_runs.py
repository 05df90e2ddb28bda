"""Whole runs of a patched host: the double always, the real OpenFedLLM where OPENFEDLLM_HOME names a checkout."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.algorithms import ALGORITHMS
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch, plan_unpatch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.runner import Run, dpo_flags, run_script, sft_flags

STACK = detect_stack()
current_only = pytest.mark.skipif(STACK != "current", reason="the built-in host needs the current libraries")
pinned_only = pytest.mark.skipif(STACK != "pinned", reason="the unpatched host runs with the libraries it pins only")
WEIGHTED = [(fed_alg, aggregation) for fed_alg in ALGORITHMS for aggregation in ("host", "bama")]
IDLE = ["--aggregation", "host", "--scenario", "none", "--bias_benchmarks", "none"]
LOOP = [
    "--num_clients", "3", "--sample_clients", "2", "--num_rounds", "3", "--max_steps", "2", "--batch_size", "2",
    "--gradient_accumulation_steps", "2", "--learning_rate", "5e-3", "--prox_mu", "0.5", "--fedopt_eta", "0.05",
    "--gradient_checkpointing", "false", "--seed", "7", "--scenario", "1B2C", "--client_samples", "8",
    "--heldout_samples", "4", "--bama_crows_fraction", "0.5", "--bama_stereoset_fraction", "0.5",
]  # fmt: skip
Start = Callable[..., tuple[Path, Run]]


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of everything in a checkout, what Python and runs left behind aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(params=["double", "OPENFEDLLM_HOME"])
def checkout(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the double, and of the real host where it is there; not patched."""
    if request.param == "double":
        return request.getfixturevalue("double")
    if not os.environ.get("OPENFEDLLM_HOME"):
        pytest.skip("OPENFEDLLM_HOME names no checkout of the real OpenFedLLM")
    ignored = shutil.ignore_patterns(".git", "__pycache__", "evaluation", "doc")
    return Path(shutil.copytree(os.environ["OPENFEDLLM_HOME"], tmp_path / "openfedllm", ignore=ignored))


@pytest.fixture
def patched(checkout: Path) -> Iterator[Path]:
    """The same, patched; unpatched at the end, when every byte must be as before."""
    before = digests(checkout)
    plan_patch(str(checkout)).write()
    yield checkout
    plan_unpatch(str(checkout)).write()
    assert digests(checkout) == before


@pytest.fixture
def start(tmp_path: Path, host_model: Path, host_data: Path) -> Start:
    """``start(folder, "main_sft.py", "--fed_alg", "scaffold")`` -> the run's folder and how it ended."""

    def run(folder: Path, script: str, *flags: str, output: str = "out") -> tuple[Path, Run]:
        basis = dpo_flags if script == "main_dpo.py" else sft_flags
        (tmp_path / output).mkdir()
        flags = (*basis(host_model, host_data, tmp_path / output), *flags)
        ended = run_script(folder, script, *flags, log=tmp_path / f"{output}.log")
        assert ended.code == 0, ended.text[-3000:]
        return next((tmp_path / output).iterdir()), ended

    return run


def records(folder: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` says, seconds and memory aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "peak_memory_bytes")} for line in lines]


def adapter(folder: Path) -> dict[str, Any]:
    """The final global adapter."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter/adapter_model.safetensors")


@current_only
@pytest.mark.parametrize(("fed_alg", "aggregation"), WEIGHTED)
def test_a_patched_host_and_the_built_in_one_end_with_the_same_adapter_and_scores(
    patched, start, tmp_path, host_model, small_data, fed_alg, aggregation
):
    import torch

    shared = [*LOOP, "--data_dir", str(small_data), "--fed_alg", fed_alg, "--aggregation", aggregation]
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
    assert distance <= 1e-5 * size  # 0 wherever it was tried
    assert records(ours) == records(theirs)
    assert {record["round"] for record in records(theirs)} == {0, 1, 2, 3}


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


@pytest.mark.parametrize("aggregation", ["host", "bama"])
@pytest.mark.parametrize("fed_alg", ["fedavg", "fedprox", "scaffold"])
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
@pytest.mark.parametrize("script", ["main_sft.py", "main_dpo.py"])
@pytest.mark.parametrize("fed_alg", [name for name in ALGORITHMS if name != "fedadagrad"])  # which crashes unpatched
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
