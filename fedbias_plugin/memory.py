"""How much memory a run took, and how much there is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CONTROL_GROUP = Path("/sys/fs/cgroup")


def peak_memory_bytes() -> int:
    """Most memory this process held so far: of the GPU where one is used, else resident in RAM; 0 where unknown.

    Pages of files that the system could drop at any time, such as the states of ``--local_states disk``, count too.
    """
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows has no such module; the number is left out rather than the run
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory_bytes(device: torch.device | None = None) -> int:
    """Memory that can still be taken on a GPU, or (default) in RAM, where a container's limit counts; 0 elsewhere."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    if device is not None and device.type != "cpu":
        return 0
    import psutil

    free = int(psutil.virtual_memory().available)
    limit, used = (_control_group(name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _control_group(name: str) -> int | None:
    """A number of this process's control group (version 2, as seen from within a container); None without a limit."""
    try:
        return int((CONTROL_GROUP / name).read_text())
    except (OSError, ValueError):  # not Linux, no such file at the root, or "max"
        return None
