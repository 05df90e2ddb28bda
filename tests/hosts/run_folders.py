"""Compares the folders of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def comparable(output: Path) -> list[dict[str, Any]]:
    """Every record, without what differs from one process to the next."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "peak_memory_bytes")} for line in lines
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal records, the same files, and equal bytes of those that hold neither times nor paths."""
    assert comparable(one) == comparable(other)
    names = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert names == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    for name in names:
        if name.name not in ("metrics.jsonl", "summary.json", "run.json"):
            assert (one / name).read_bytes() == (other / name).read_bytes(), name
