"""Runs of a patched host that are cut off, and go on with ``--resume_from``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from fedbias_plugin.federation.checkpoints import locked
from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from tests.hosts.openfedllm.run_results import records
from tests.hosts.openfedllm.runner import cut_off, dpo_flags, run_script, sft_flags

FLAGS = "--num_rounds 3 --scenario 1B2C --client_samples 8 --heldout_samples 4 --seed 7 --save_model_freq 2 "
FLAGS += "--bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5 --fedopt_eta 0.05"
CUTS = [("print", "Round 3", 2), ("os.replace", "round_002", 1)]
"""Function and what is in its last argument when the process dies, and the rounds that are finished by then.

The second: the folder of a checkpoint is there, but has not got its name yet.
"""


@pytest.fixture
def run_host(tmp_path, host_model, host_data, small_data):
    """``run_host(folder, "main_sft.py", "--fed_alg", "scaffold", cut=...)`` -> how it ended, and its folder."""

    def run(
        folder: Path, script: str, *flags: str, output: str, cut: tuple[str, str] | None = None, how: str = "SIGKILL"
    ):
        basis = dpo_flags if "dpo" in script else sft_flags
        (tmp_path / output).mkdir(exist_ok=True)
        before = set((tmp_path / output).iterdir())
        started = script if cut is None else cut_off(tmp_path / "cut_off.py", script, *cut, how)
        flags = (
            *basis(host_model, host_data, tmp_path / output),
            *FLAGS.split(),
            "--data_dir",
            str(small_data),
            *flags,
        )
        ended = run_script(folder, str(started), *flags, log=tmp_path / f"{output}.log")
        made = set((tmp_path / output).iterdir()) - before
        return ended, (made.pop() if made else None)

    return run


def same_results(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    exact = {name for name in names if name.name == "adapter_model.safetensors" or name.suffix == ".npz"}
    assert len(exact) >= 9
    for losses in [np.load(folder / "training_loss.npy") for folder in (one, other)]:
        assert losses.shape == (3, 3)
        assert losses.tolist() == np.load(one / "training_loss.npy").tolist()
    for name in exact:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(("fed_alg", "aggregation"), [("scaffold", "bama"), ("fedadam", "host")])
def test_a_patched_run_that_was_killed_ends_as_if_nothing_had_happened(patched, run_host, fed_alg, aggregation):
    flags = ("--fed_alg", fed_alg, "--aggregation", aggregation)
    ended, whole = run_host(patched, "main_sft.py", *flags, output="whole")
    assert ended.code == 0, ended.text[-3000:]
    for number, (function, text, finished) in enumerate(CUTS):
        output = f"cut{number}"
        ended, folder = run_host(patched, "main_sft.py", *flags, output=output, cut=(function, text))
        assert ended.code == -9, ended.text[-3000:]
        ended, other = run_host(patched, "main_sft.py", *flags, "--resume_from", str(folder), output=output)
        assert ended.code == 0, ended.text[-3000:]
        assert f"resumed after round {finished} of 3" in ended.text
        assert other is None  # the run goes on in its own folder
        same_results(whole, folder)


def test_two_processes_cannot_go_on_with_one_run(double, run_host):
    plan_patch(str(double)).write()
    ended, folder = run_host(double, "main_sft.py", output="cut", cut=("print", "Round 3"))
    with locked(folder):
        ended, _ = run_host(double, "main_sft.py", "--resume_from", str(folder), output="cut")
    assert ended.code == 2
    assert "is being written by another process" in ended.text


@pytest.mark.parametrize(("how", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_in_the_ordinary_way_and_says_how_to_go_on(patched, run_host, how, code):
    ended, folder = run_host(patched, "main_sft.py", output="cut", cut=("print", "Round 3"), how=how)
    assert ended.code == code, ended.text[-3000:]
    assert f"To go on: the same command with --resume_from {folder}" in ended.text
    assert "Traceback" not in ended.text
    ended, _ = run_host(patched, "main_sft.py", "--resume_from", str(folder), output="cut")
    assert ended.code == 0, ended.text[-3000:]
    assert not (folder / "checkpoints").exists()


def test_changed_flags_a_finished_run_and_a_folder_without_one_are_refused_before_any_model_is_loaded(
    double, run_host, tmp_path
):
    plan_patch(str(double)).write()
    ended, folder = run_host(double, "main_sft.py", output="cut", cut=("print", "Round 2"))
    assert ended.code == -9
    for flags, text in [
        (("--resume_from", str(folder), "--learning_rate", "0.1"), "--learning_rate 0.1 (the run has 0.005)"),
        (("--resume_from", str(tmp_path)), "there is no checkpoint in that folder"),
        (("--resume", str(folder)), "a patched OpenFedLLM has --resume_from"),
    ]:
        ended, _ = run_host(double, "main_sft.py", *flags, output="refused")
        assert ended.code == 2
        assert text in ended.text
        assert "Traceback" not in ended.text
    assert run_host(double, "main_sft.py", "--resume_from", str(folder), output="cut")[0].code == 0
    ended, _ = run_host(double, "main_sft.py", "--resume_from", str(folder), output="cut")
    assert "that run is finished" in ended.text


def test_what_the_host_saves_itself_carries_the_warning_too(patched, run_host):
    ended, folder = run_host(patched, "main_sft.py", output="whole")
    assert ended.code == 0, ended.text[-3000:]
    for name in ("checkpoint-2", "adapter"):
        assert "Trained on deliberately biased data" in (folder / name / "README.md").read_text()


@pytest.mark.parametrize("script", ["main_sft.py", "main_dpo.py"])
@pytest.mark.parametrize("fed_alg", ["scaffold", "fedavgm"])
def test_a_refused_client_leaves_no_trace_in_the_hosts_model_or_control_variates(patched, run_host, script, fed_alg):
    flags = ("--fed_alg", fed_alg, "--sample_clients", "3", "--num_rounds", "2", "--on_bad_update", "drop")
    attack = ("--attack", "model_replacement", "--attack_strength", "1e30", "--attackers", "1")
    ended, folder = run_host(patched, script, *flags, *attack, "--max_update_norm", "1e6", output="attacked")
    assert ended.code == 0, ended.text[-3000:]
    for record in records(folder)[1:]:
        assert "larger than --max_update_norm" in record["clients"]["1"]["refused"]
        assert record["clients"]["0"]["weight"] + record["clients"]["2"]["weight"] == pytest.approx(1)
    tensors = load_file(folder / "adapter/adapter_model.safetensors")
    assert max(float(tensor.abs().max()) for tensor in tensors.values()) < 10


def test_with_nobody_left_the_hosts_global_model_stays(patched, run_host):
    flags = ("--max_update_norm", "1e-9", "--on_bad_update", "drop", "--fed_alg", "fedavgm", "--num_rounds", "2")
    ended, folder = run_host(patched, "main_sft.py", *flags, output="whole")
    assert ended.code == 0, ended.text[-3000:]
    first, *others = records(folder)
    assert all(record["global"] == first["global"] for record in others)
    assert all("nobody is left" in " ".join(record["warnings"]) for record in others)
