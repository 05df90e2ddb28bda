"""Runs the built-in host in this process, on the small model and data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord

Run = Callable[..., list[RoundRecord]]


@pytest.fixture
def run_builtin(random_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run_builtin("--fed_alg", "scaffold", output="a")`` -> the records of the run in ``tmp_path / "a"``."""
    from fedbias_plugin.cli.main import main

    monkeypatch.delenv("FEDBIAS_DATA", raising=False)

    def run(*flags: str, output: str = "run", code: int = 0) -> list[RoundRecord]:
        folder = tmp_path / output
        basis = f"--model_name_or_path {random_model} --data_dir {small_data} --output_dir {folder} --num_rounds 2 "
        basis += "--client_samples 8 --heldout_samples 4 --max_steps 2 --batch_size 4 --learning_rate 5e-3 "
        basis += "--gradient_checkpointing false --bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5"
        assert main(["run", *basis.split(), *flags]) == code
        return read_rounds(folder / "metrics.jsonl") if code == 0 else []

    return run
