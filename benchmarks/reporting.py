"""What every benchmark does with its figures."""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from fedbias_plugin.scoring.precision import CPU_INFO, cpu_bf16_units, cpu_rows


class Seconds(NamedTuple):
    """Of one piece of work."""

    wall: float
    cpu: float
    """Of all threads, and of child processes that ended meanwhile."""

    def fair(self, device: str) -> float:
        """Those to compare: the CPU's, which other work on the machine changes little; on a GPU the wall's."""
        return self.cpu if device == "cpu" else self.wall


def clocked(work: Callable[[], object], device: str = "cpu") -> Seconds:
    """Seconds of a call; its result is dropped inside, the GPU's work is waited for."""
    wall, own = time.perf_counter(), _cpu_seconds()
    work()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, _cpu_seconds() - own)


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def cpu(info: Path = CPU_INFO) -> str:
    """The machine's CPU as Linux names it."""
    names = cpu_rows(info, "model name")
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def bf16_units(info: Path = CPU_INFO) -> str:
    """The CPU's units for bfloat16, as ``--scoring_dtype auto`` reads them."""
    return cpu_bf16_units(info)


def machine() -> dict[str, str]:
    """What every report says of the machine."""
    return {"cpu": cpu(), "bf16_units": bf16_units()}


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
