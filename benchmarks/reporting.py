"""What every benchmark does with its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def line(report: Mapping[str, object]) -> str:
    """The figures in one line, numbers to four digits."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in report.items()
    )


def write_report(report: Mapping[str, object], path: Path | None) -> None:
    """The figures as JSON, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
