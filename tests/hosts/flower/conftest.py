"""Runs the Flower host in this process, on the small model and data. Flower is imported only by those who have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fedbias_plugin.tracking.jsonl import read_rounds
from fedbias_plugin.tracking.records import RoundRecord

if TYPE_CHECKING:
    from tests.hosts.flower.in_process_run import Machines


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    """Three nodes on which all goes well; a test changes them."""
    from fedbias_plugin.hosts.flower import fleet
    from tests.hosts.flower.in_process_run import Machines

    monkeypatch.setattr(fleet, "POLL", 0.0)
    return Machines()


@pytest.fixture
def run_flower(basis: Callable[..., list[str]], tmp_path: Path, machines: Machines) -> Callable[..., list[RoundRecord]]:
    """``run_flower("--fed_alg", "scaffold", output="a")`` -> the records; the flags of ``run_builtin``."""
    from fedbias_plugin.hosts.flower.server_app import serve
    from tests.hosts.flower.in_process_run import run_config

    def run(*flags: str, output: str = "run", resume: str | None = None) -> list[RoundRecord]:
        words = [*flags] if resume is not None else [*basis(output), *flags]
        config = run_config(words) | ({} if resume is None else {"resume": str(tmp_path / resume)})
        serve(machines.grid(), config)
        return read_rounds(tmp_path / (resume or output) / "metrics.jsonl")

    return run
