"""Runs of the built-in host that are cut off, and go on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedbias_plugin.cli.main import main
from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.federation import checkpoints
from tests.hosts.cutting import cut_off_in
from tests.hosts.run_folders import assert_same_run, comparable

LORA = ("--use_peft", "--peft_lora_target_modules", "all-linear")
FULL = ("--use_peft", "false", "--learning_rate", "1e-4")
Cutter = Callable[..., None]


@pytest.fixture
def cut_off(run_builtin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    """``cut_off("--use_peft", round_number=3)``: a run in ``tmp_path / "cut"`` that dies in that round's training."""

    def run(
        *flags: str, round_number: int = 3, client: int = 1, output: str | Path = "cut", resume: str | None = None
    ) -> None:
        with cut_off_in(round_number, client):
            if resume is None:
                run_builtin(*flags, "--num_rounds", "3", output=output)
            else:
                main(["run", "--resume", str(tmp_path / resume)])

    return run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the two runs that many tests start from."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def whole(run_builtin: Any, kept: Path) -> Path:
    """A run of three rounds that nothing disturbed, made once."""
    if not (kept / "whole").exists():
        run_builtin(*LORA, "--num_rounds", "3", output=kept / "whole")
    return kept / "whole"


@pytest.fixture
def cut(cut_off: Cutter, kept: Path, tmp_path: Path) -> Path:
    """A copy of the same run, cut off in its third round once, in ``tmp_path / "cut"``."""
    if not (kept / "cut").exists():
        cut_off(*LORA, output=kept / "cut")
    return shutil.copytree(kept / "cut", tmp_path / "cut")


@pytest.mark.parametrize(
    ("weights", "fed_alg", "aggregation"),
    [
        *((LORA, fed_alg, "bama") for fed_alg in ALGORITHMS),  # whose last weights must survive, too
        *((LORA, fed_alg, "host") for fed_alg in ("fedavg", "scaffold", "fedadam")),
        (FULL, "scaffold", "bama"),  # what a state is of matters to no algorithm: the one that keeps most, and one more
        (FULL, "fedavgm", "host"),
    ],
    ids=lambda value: value if isinstance(value, str) else "lora" if value is LORA else "full",
)
def test_a_run_cut_off_in_its_third_round_ends_as_if_nothing_had_happened(
    run_builtin, tmp_path, cut_off, weights, fed_alg, aggregation
):
    flags = (*weights, "--fed_alg", fed_alg, "--aggregation", aggregation)
    run_builtin(*flags, "--num_rounds", "3", output="whole")
    cut_off(*flags)
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    "flags",
    [
        "--num_clients 5 --client_samples 6 --sample_clients 2 --scenario custom --biased_shares 1,0,0,0.5,0 "
        "--fed_alg scaffold --local_states disk",
        "--schedule_seed 4 --fed_alg fedprox --aggregation bama --prox_mu 0.1",
        "--bias_eval_every 2 --fed_alg fedadam --checkpoint_every 2 --save_model_freq 2",
    ],
    ids=["partial participation on disk", "schedule seed", "every second round"],
)
def test_what_a_client_or_the_server_remembers_over_rounds_survives(run_builtin, tmp_path, cut_off, flags):
    run_builtin(*LORA, *flags.split(), "--num_rounds", "3", output="whole")
    third_rounds_client = int(next(iter(comparable(tmp_path / "whole")[3]["clients"])))
    cut_off(*LORA, *flags.split(), client=third_rounds_client)
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_that_is_finished_keeps_no_checkpoint_and_says_so_when_resumed(run_builtin, tmp_path, capsys):
    run_builtin(*LORA)
    assert not (tmp_path / "run/checkpoints").exists()
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert main(["run", "--resume", str(tmp_path / "run")]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["run", "--resume", str(tmp_path / "run"), "--num_rounds", "9"]) == 2
    assert "a finished run cannot be extended" in capsys.readouterr().err
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["global.safetensors", "checkpoint.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, cut, capsys, name, damage):
    file = cut / "checkpoints/round_002" / name
    raw = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        half = len(raw) // 2
        file.write_bytes(raw[:half] if damage == "cut" else raw[:half] + bytes([raw[half] ^ 1]) + raw[half + 1 :])
    capsys.readouterr()
    assert main(["run", "--resume", str(cut)]) == 0
    error = capsys.readouterr().err
    assert f"{file.parent} is damaged" in error
    assert "resumed after round 1 of 3" in error
    assert_same_run(whole, cut)


def test_with_every_rounds_checkpoint_damaged_nothing_is_guessed_or_deleted(cut, capsys):
    before = (cut / "metrics.jsonl").read_bytes()
    for path in (cut / "checkpoints").glob("round_*/checkpoint.json"):
        path.write_text("{}")
    assert main(["run", "--resume", str(cut)]) == 2
    assert "start the run again in a new folder" in capsys.readouterr().err
    assert (cut / "metrics.jsonl").read_bytes() == before


def test_checkpoints_after_the_one_that_was_used_are_forgotten(tmp_path, cut_off, whole, cut):
    newest = cut / "checkpoints/round_002"
    kept = shutil.copytree(newest, tmp_path / "kept")
    (newest / "SHA256SUMS").unlink()
    cut_off(round_number=2, resume="cut")
    assert not newest.exists()
    assert main(["run", "--resume", str(cut)]) == 0
    assert kept.is_dir()
    assert_same_run(whole, cut)


def test_a_run_that_died_before_its_first_round_begins_anew_with_its_flags(run_builtin, tmp_path, cut_off):
    run_builtin(*LORA, "--num_rounds", "3", "--aggregation", "bama", output="whole")
    cut_off(*LORA, "--aggregation", "bama", round_number=1)
    shutil.rmtree(tmp_path / "cut/checkpoints/round_000")  # as if it had died while round 0 was measured
    assert main(["run", "--resume", str(tmp_path / "cut")]) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_flags_that_have_changed_are_named_and_refused(cut_off, tmp_path, capsys):
    cut_off(*LORA, "--aggregation", "bama")
    before = {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    flags = "--learning_rate 0.1 --bama_lambda 0.3 --num_rounds 3 --local_states disk"
    assert main(["run", "--resume", str(tmp_path / "cut"), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert "--learning_rate 0.1 (the run has 0.005)" in error
    assert "--bama_lambda 0.3 (the run has 0.2)" in error
    assert "num_rounds" not in error
    assert "local_states" not in error
    assert before == {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*") if path.is_file()}


def test_a_run_that_a_bad_update_has_stopped_goes_on_without_such_clients_and_says_so(run_builtin, tmp_path, capsys):
    flags = (*LORA, "--attack", "model_replacement", "--attack_strength", "20", "--max_update_norm", "3")
    run_builtin(*flags, code=2)
    assert f"fedbias run --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert main(["run", "--resume", str(tmp_path / "run"), "--on_bad_update", "drop"]) == 0
    (note,) = json.loads((tmp_path / "run/run.json").read_text())["resumed"]
    assert note == {"after_round": 0, "versions": {}, "config": {"on_bad_update": ["stop", "drop"]}}
    assert any("update refused: client" in warning for warning in comparable(tmp_path / "run")[2]["warnings"])


@pytest.mark.parametrize("inner", ["checkpoints", "checkpoints/round_002", ".."])
def test_the_wrong_level_of_folder_is_answered_with_the_right_one(cut, capsys, inner):
    assert main(["run", "--resume", str(cut / inner)]) == 2
    assert f"Did you mean {cut}?" in capsys.readouterr().err


def test_data_that_have_changed_are_refused(cut, small_data, tmp_path, capsys):
    other = shutil.copytree(small_data, tmp_path / "other")
    again = shutil.copytree(cut, tmp_path / "again")
    assert main(["run", "--resume", str(cut), "--data_dir", str(other)]) == 0  # the same data elsewhere
    rows = json.loads((other / "alpaca/alpaca_gpt4_data.json").read_text())
    (other / "alpaca/alpaca_gpt4_data.json").write_text(json.dumps([{**row, "output": "No."} for row in rows]))
    capsys.readouterr()
    assert main(["run", "--resume", str(again), "--data_dir", str(other)]) == 2
    assert "had other training rows" in capsys.readouterr().err


def test_the_same_command_on_a_run_that_was_cut_off_says_how_to_go_on(run_builtin, cut, capsys):
    run_builtin(*LORA, output=cut, code=2)
    assert f"fedbias run --resume {cut}" in capsys.readouterr().err


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_a_checkpoint_cannot_be_resumed(tmp_path, capsys, make):
    if make:
        (tmp_path / "folder").mkdir()
    assert main(["run", "--resume", str(tmp_path / "folder")]) == 2
    assert ("there is no checkpoint in that folder" if make else "there is no such folder") in capsys.readouterr().err


def test_two_processes_cannot_be_in_one_run_and_the_second_leaves_no_trace(run_builtin, cut, tmp_path, capsys):
    (cut / ".local_states").mkdir()
    with checkpoints.locked(cut):
        assert main(["run", "--resume", str(cut)]) == 2
        assert "is being written by another process" in capsys.readouterr().err
        assert (cut / ".local_states").is_dir()
    with checkpoints.locked(tmp_path / "new"):
        run_builtin(*LORA, output="new", code=2)
        assert "is being written by another process" in capsys.readouterr().err
    with checkpoints.locked(cut):
        run_builtin(*LORA, output=cut, code=2)
        assert "is being written by another process" in capsys.readouterr().err


def test_a_model_that_has_changed_is_refused_and_one_that_has_moved_is_not(cut_off, random_model, tmp_path, capsys):
    model = shutil.copytree(random_model, tmp_path / "model")
    cut_off(*LORA, "--model_name_or_path", str(model))
    moved = model.rename(tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    save_file({name: 1.01 * tensor for name, tensor in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    flags = ("--resume", str(tmp_path / "cut"), "--model_name_or_path", str(moved))
    assert main(["run", *flags]) == 2
    assert "another model or tokenizer" in capsys.readouterr().err
    save_file(weights, moved / "model.safetensors", {"format": "pt"})
    assert main(["run", *flags]) == 0


def test_a_patched_hosts_run_is_told_apart(cut, capsys):
    folder = checkpoints.CheckpointFolder(cut)
    folder.write(dataclasses.replace(folder.newest(), host="openfedllm"))
    assert main(["run", "--resume", str(cut)]) == 2
    assert "a run of a patched OpenFedLLM" in capsys.readouterr().err


def test_the_weights_and_biases_run_is_the_same_from_the_start(cut_off, tmp_path):
    pytest.importorskip("wandb")
    cut_off(*LORA, "--track", "wandb", "--wandb_mode", "offline", round_number=1)
    records = [json.loads(path.read_text()) for path in (tmp_path / "cut/checkpoints").glob("*/checkpoint.json")]
    assert [record["round"] for record in records].count(None) == 1
    ids = {record["details"]["session"]["records"]["wandb"]["run_id"] for record in records}
    assert len(ids) == 1
    assert len(list((tmp_path / "cut/wandb").glob(f"offline-run-*-{ids.pop()}"))) == 1


def test_two_rounds_and_the_arguments_are_kept_and_zero_writes_none(cut_off, tmp_path, capsys):
    cut_off(*LORA)
    found = {path.name for path in (tmp_path / "cut/checkpoints").iterdir()}
    assert found == {"start", "round_001", "round_002"}
    assert "To go on: fedbias run --resume" in capsys.readouterr().err
    cut_off(*LORA, "--checkpoint_every", "0", output="none")
    assert not (tmp_path / "none/checkpoints").exists()
    error = capsys.readouterr().err
    assert "To go on" not in error
    assert "--checkpoint_every 0" in error
    assert main(["run", "--resume", str(tmp_path / "none")]) == 2
    assert "kept no checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_leaves_the_one_before(
    run_builtin, whole, tmp_path, monkeypatch, capsys
):
    write = checkpoints.write_state_file

    def fill_up(state: Any, path: Path, **options: Any) -> None:
        if "round_002" in str(path):
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        write(state, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_state_file", fill_up)
        run_builtin(*LORA, "--num_rounds", "3", output="full", code=2)
    error = capsys.readouterr().err
    assert "round_002 cannot be written" in error
    assert "No space left" in error
    assert f"fedbias run --resume {tmp_path / 'full'}" in error
    assert main(["run", "--resume", str(tmp_path / "full")]) == 0
    assert_same_run(whole, tmp_path / "full")
