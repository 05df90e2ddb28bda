"""How much memory a run took, and how much there is; and the garbage collector, where it costs more than it frees."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CONTROL_GROUP = Path("/sys/fs/cgroup")


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage is collected within, as while the libraries load: nothing of what they make is garbage, and looking
    through it again and again takes a sixth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


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

        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device is not None and device.type != "cpu":
        return 0
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _free_in_control_group()
    return free if limit is None else max(0, min(free, limit))


def _free_in_control_group() -> int | None:
    """What the limit of this process's control group (version 2, from within a container) leaves; None without one.

    Pages of files that nobody has used lately count as used there, but would be given back.
    """
    try:
        limit, used = (int((CONTROL_GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (CONTROL_GROUP / "memory.stat").read_text().splitlines())
        return limit - used + next((int(size) for name, size in lines if name == "inactive_file"), 0)
    except (OSError, ValueError):  # not Linux, no such file at the root, or "max"
        return None
