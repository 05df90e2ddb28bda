"""Which folders are artifacts, and how large they may be; the sending itself is tested with the tracker."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedbias_plugin.tracking.wandb_artifacts import ArtifactLog, saved_models, size_limit


def save(folder: Path, *names: str, size: int = 10) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"x" * size)


def artifact_log(output: Path) -> tuple[ArtifactLog, list[Any]]:
    """An ``ArtifactLog`` in ``output``, and the list of what it sends."""
    sent: list[Any] = []

    def make(name: str, type: str, metadata: dict[str, Any]) -> SimpleNamespace:
        files: list[str] = []
        return SimpleNamespace(name=name, type=type, files=files, add_file=lambda path, **_: files.append(path))

    run = SimpleNamespace(log_artifact=lambda artifact, aliases: sent.append(artifact))
    wandb: Any = SimpleNamespace(Artifact=make)
    return ArtifactLog(wandb, run, output, "a run", "id"), sent


def test_saved_rounds_come_in_order_and_steps_of_a_trainer_are_none(tmp_path: Path) -> None:
    for number in (10, 9):
        save(tmp_path / f"checkpoint-{number}", "adapter_config.json", "adapter_model.safetensors")
    save(tmp_path / "checkpoint-500", "trainer_state.json", "adapter_config.json", "adapter_model.safetensors")
    save(tmp_path / "checkpoint-11", "adapter_config.json", "adapter_model.bin")
    save(tmp_path / "checkpoint-old")
    save(tmp_path / "model", "config.json")
    assert [(saved.round, saved.kind) for saved in saved_models(tmp_path)] == [
        (9, "adapter"), (10, "adapter"), (None, "model"),
    ]  # fmt: skip


def test_an_adapter_is_sent_and_a_model_that_is_too_large_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDBIAS_WANDB_MAX_MB", "1")
    save(tmp_path / "checkpoint-1", "model.safetensors", size=1_000_001)
    save(tmp_path / "checkpoint-2", "model.safetensors", size=1_000_001)
    save(tmp_path / "adapter", "adapter_config.json", "adapter_model.safetensors", size=500_000)
    log, sent = artifact_log(tmp_path)
    log.log_models(2)
    log.log_models(3, finished=True)
    assert [artifact.type for artifact in sent] == ["adapter"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "W&B gets no artifact of this run's model: 1 MB are more than FEDBIAS_WANDB_MAX_MB=1."


def test_a_limit_of_0_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDBIAS_WANDB_MAX_MB", "0")
    save(tmp_path / "adapter", "adapter_config.json")
    (tmp_path / "run.json").write_text("{}")
    log, sent = artifact_log(tmp_path)
    log.log_models(1, finished=True)
    log.log_run_files()
    assert sent == []


def test_a_limit_that_is_no_number_is_named_and_the_default_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert size_limit() == 500_000_000
    monkeypatch.setenv("FEDBIAS_WANDB_MAX_MB", "lots")
    with caplog.at_level(logging.WARNING):
        assert size_limit() == 500_000_000
    assert "FEDBIAS_WANDB_MAX_MB='lots' is no whole number" in caplog.text


def test_files_that_lead_elsewhere_and_pickles_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    save(tmp_path / "adapter", "adapter_config.json", "training_args.bin")
    (tmp_path / "adapter" / "extra.json").symlink_to(tmp_path / "secret.json")
    log, sent = artifact_log(tmp_path)
    log.log_models(1, finished=True)
    assert [Path(path).name for path in sent[0].files] == ["adapter_config.json"]
