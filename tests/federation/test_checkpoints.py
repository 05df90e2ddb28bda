"""The folder of checkpoints by itself."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess

import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation import checkpoints
from fedbias_plugin.federation.checkpoints import Checkpoint, CheckpointFolder, changed_arguments, locked

BASE = torch.arange(12, dtype=torch.float32).reshape(3, 4)
STATES = {
    "global": {"b": BASE.t(), "a": BASE[1], "half": torch.tensor([0.1, -0.0, float("inf")], dtype=torch.bfloat16)},
    "client-control-3": {"a": torch.zeros(0)},
}


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path)


def checkpoint(number=1, **details):
    return Checkpoint(number, {"seed": 7, "learning_rate": 1e-5}, details, STATES)


def test_what_is_read_is_what_was_written_to_the_bit(folder):
    folder.write(checkpoint(weights={"0": 1 / 3}, text="ü\n"))
    found = folder.newest()
    assert (found.round, found.arguments) == (1, {"seed": 7, "learning_rate": 1e-5})
    assert found.details == {"weights": {"0": 1 / 3}, "text": "ü\n"}
    assert found.states.keys() == STATES.keys()
    for name, state in STATES.items():
        assert found.states[name].keys() == state.keys()
        for key, tensor in state.items():
            assert found.states[name][key].dtype == tensor.dtype
            assert torch.equal(found.states[name][key], tensor)


def test_the_sums_are_those_of_sha256sum(folder):
    folder.write(checkpoint())
    if shutil.which("sha256sum") is None:
        pytest.skip("this system has no sha256sum")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder.folder / "round_001", check=True)


def test_files_have_the_mode_that_the_umask_gives(folder):
    before = os.umask(0o027)
    try:
        folder.write(checkpoint())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (folder.folder / "round_001").iterdir()} == {0o640}


def test_a_folder_that_was_never_renamed_is_no_checkpoint(folder):
    folder.write(checkpoint(1))
    folder.write(checkpoint(2))
    (folder.folder / "round_002").rename(folder.folder / ".round_002.fedbias-partial")
    assert folder.newest().round == 1
    folder.write(checkpoint(2))
    assert folder.newest().round == 2
    assert not (folder.folder / ".round_002.fedbias-partial").exists()


def test_rounds_are_ordered_by_number_and_two_are_kept(folder):
    for number in (8, 9, 10, 1000):
        folder.write(checkpoint(number))
    assert sorted(path.name for path in folder.folder.iterdir()) == ["round_010", "round_1000"]
    assert folder.newest().round == 1000
    folder.forget_after(10)
    assert folder.newest().round == 10
    folder.forget_after(None)
    assert folder.is_empty


def test_the_start_is_kept_and_used_where_there_is_nothing_else(folder):
    folder.write(Checkpoint(None, {"seed": 7}))
    assert folder.newest() == Checkpoint(None, {"seed": 7})
    for number in (0, 1, 2):
        folder.write(checkpoint(number))
    assert (folder.folder / "start").is_dir()
    assert folder.newest().round == 2


def test_a_checkpoint_of_another_version_is_refused_by_name(folder):
    folder.write(checkpoint())
    record = folder.folder / "round_001/checkpoint.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 99, "plugin": "9.9"}))
    subprocess.run("sha256sum checkpoint.json *.safetensors > SHA256SUMS", shell=True, cwd=record.parent, check=True)
    with pytest.raises(UserError, match=r"written by another fedbias_plugin, 9\.9 \(format 99\)"):
        folder.newest()


def test_a_sum_that_is_gone_is_damage_and_so_is_one_too_many(folder, caplog):
    for number in (1, 2):
        folder.write(checkpoint(number))
    sums = folder.folder / "round_002/SHA256SUMS"
    whole = sums.read_text().splitlines(keepends=True)
    for part in (whole[:-1], whole[:1], [*whole, whole[0].replace("checkpoint.json", "SHA256SUMS")]):
        sums.write_text("".join(part))
        assert folder.newest().round == 1
    assert caplog.text.count("round_002 is damaged") == 3


def test_a_file_that_cannot_be_read_now_is_no_damage(folder, monkeypatch):
    folder.write(checkpoint(1))

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints, "sha256_of_file", refuse)
    with pytest.raises(PermissionError):
        folder.newest()


def test_only_a_lock_that_is_held_keeps_a_process_out(tmp_path, monkeypatch, caplog):
    with locked(tmp_path / "run"), pytest.raises(UserError, match="another process"), locked(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())

    def no_locks(descriptor):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(checkpoints, "_lock", no_locks)
    with locked(tmp_path / "run"):
        assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("sums", ["", "garbage", "0" * 64 + "  ../../etc/passwd\n", "\xff"])
def test_sums_that_make_no_sense_are_damage(folder, sums, caplog):
    folder.write(checkpoint(1))
    folder.write(checkpoint(2))
    (folder.folder / "round_002/SHA256SUMS").write_text(sums, encoding="latin-1")
    assert folder.newest().round == 1
    assert "round_002 is damaged" in caplog.text


def test_arguments_that_move_a_number_may_not_change():
    stored = {"seed": 7, "output_dir": "a", "local_states": "memory", "fed_alg": "fedavg"}
    given = {"seed": 8, "output_dir": "b", "local_states": "disk", "fed_alg": "fedavg", "new_flag": 1}
    assert changed_arguments(stored, given) == ["--seed 8 (the run has 7)", "--new_flag 1 (the run has None)"]
