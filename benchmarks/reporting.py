"""What every benchmark does with its figures."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path

BF16_UNITS = ("amx_bf16", "avx512_bf16", "avx_bf16", "bf16")
"""Flags of a CPU that multiplies bfloat16 numbers by itself; the last is Arm's."""


def cpu(info: Path = Path("/proc/cpuinfo")) -> str:
    """The machine's CPU as Linux names it."""
    names = _rows(info, "model name")
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def bf16_units(info: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's units for bfloat16: ``amx_bf16 avx512_bf16``, ``none``, or ``unknown`` where Linux does not say."""
    flags = _rows(info, "flags") or _rows(info, "Features")
    return " ".join(unit for unit in BF16_UNITS if unit in flags[0].split()) or "none" if flags else "unknown"


def machine() -> dict[str, str]:
    """What every report says of the machine."""
    return {"cpu": cpu(), "bf16_units": bf16_units()}


def _rows(info: Path, key: str) -> list[str]:
    rows = info.read_text().splitlines() if info.exists() else []
    pairs = [row.partition(":")[::2] for row in rows]
    return [value.strip() for name, value in pairs if name.strip() == key]


def line(report: Mapping[str, object]) -> str:
    """The figures in one line, numbers to four digits."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in report.items()
    )


def write_report(report: Mapping[str, object], path: Path | None) -> None:
    """Print what machine the figures are of; write both as JSON, if a file was asked for."""
    print(line(machine()), flush=True)
    if path is not None:
        path.write_text(json.dumps({**report, **machine()}, indent=2) + "\n")
