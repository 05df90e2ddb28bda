"""How much memory a run took."""

from __future__ import annotations

import sys


def peak_memory_bytes() -> int:
    """Most memory this process held so far: of the GPU where one is used, else resident in RAM; 0 where unknown."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows has no such module; the number is left out rather than the run
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
