"""Runs the built-in host in this process, on the small model and data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord
from tests.hosts.run_folders import run_flags

Run = Callable[..., list[RoundRecord]]


@pytest.fixture
def basis(random_model: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``basis("a")`` -> the flags of a small run in ``tmp_path / "a"``."""
    monkeypatch.delenv("FEDBIAS_DATA", raising=False)
    return lambda output: run_flags(random_model, small_data, tmp_path / output)


@pytest.fixture
def run_builtin(basis: Callable[..., list[str]], tmp_path: Path) -> Run:
    """``run_builtin("--fed_alg", "scaffold", output="a")`` -> the records of the run in ``tmp_path / "a"``."""
    from fedbias_plugin.cli.main import main

    def run(*flags: str, output: str | Path = "run", code: int = 0) -> list[RoundRecord]:
        assert main(["run", *basis(output), *flags]) == code
        return read_rounds(tmp_path / output / "metrics.jsonl") if code == 0 else []

    return run
