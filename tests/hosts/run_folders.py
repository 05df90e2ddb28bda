"""Flags of small runs, and what compares two of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedbias_plugin.hosts.flower.wire import LEDGER


def run_flags(model: Path, data: Path, output: Path) -> list[str]:
    """A run of a few seconds on the small model and data."""
    flags = f"--model_name_or_path {model} --data_dir {data} --output_dir {output} --num_rounds 2 "
    flags += "--client_samples 8 --heldout_samples 4 --max_steps 2 --batch_size 4 --learning_rate 5e-3 "
    flags += "--gradient_checkpointing false --bama_crows_fraction 0.5 --bama_stereoset_fraction 0.5"
    return flags.split()


def comparable(output: Path) -> list[dict[str, Any]]:
    """Every record, without what differs from one process to the next."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "peak_memory_bytes")} for line in lines
    ]


def without_bytes(output: Path) -> list[dict[str, Any]]:
    """The records of a run without times, and without the bytes that only a wire has."""
    records = comparable(output)
    for record in records:
        for client in record["clients"].values():
            client["extra"] = {key: value for key, value in client["extra"].items() if key not in LEDGER}
    return records


def assert_same_run(one: Path, other: Path, records: Callable[[Path], list[dict[str, Any]]] = comparable) -> None:
    """Equal ``records``, the same files, and equal bytes of those that hold neither times nor paths."""
    assert records(one) == records(other)
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    for name in names:
        if name.name not in ("metrics.jsonl", "summary.json", "run.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
