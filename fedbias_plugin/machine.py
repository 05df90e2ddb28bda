"""What this process may use of the machine."""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores that this process may use, which a container or a batch system may have limited."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
