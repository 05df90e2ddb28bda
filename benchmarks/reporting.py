"""What every benchmark does with its figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path


def cpu() -> str:
    """The machine's CPU as Linux names it."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def line(report: Mapping[str, object]) -> str:
    """The figures in one line, numbers to four digits."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in report.items()
    )


def write_report(report: Mapping[str, object], path: Path | None) -> None:
    """The figures as JSON, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
