"""How long a sweep will take, told from the runs of the folder that have ended."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from fedbias_plugin.sweep.folder import DONE, SweepFolder
from fedbias_plugin.sweep.plan import PlannedRun
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE


def seconds_per_run(folder: SweepFolder, planned: Sequence[PlannedRun]) -> float | None:
    """Mean seconds of the runs that have ended; None without one."""
    times = []
    for run in planned:
        if folder.state(run) != DONE:
            continue
        try:
            times.append(float(json.loads((folder.run(run) / SUMMARY_FILE).read_bytes())["seconds"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    times = [seconds for seconds in times if math.isfinite(seconds)]
    return sum(times) / len(times) if times else None


def remaining(folder: SweepFolder, planned: Sequence[PlannedRun], at_once: int) -> str:
    """How long the rest takes, in words.

    Args:
        folder: of the sweep.
        planned: all its runs.
        at_once: how many go on at the same time.
    """
    left = sum(folder.state(run) != DONE for run in planned)
    if left == 0:
        return "nothing is left to do"
    each = seconds_per_run(folder, planned)
    if each is None:
        return "how long it takes is known after the first run"
    return f"about {in_words(each * left / at_once)} left ({in_words(each)} a run, {at_once} at a time)"


def in_words(seconds: float) -> str:
    """A length of time as one reads it.

    >>> [in_words(seconds) for seconds in (40, 100, 3599, 7200, 200000)]
    ['40 seconds', '2 minutes', '60 minutes', '2.0 hours', '2.3 days']
    """
    for size, unit, digits in ((86_400, "days", 1), (3_600, "hours", 1), (90, "minutes", 0)):
        if seconds >= size:
            return f"{seconds / (60 if unit == 'minutes' else size):.{digits}f} {unit}"
    return f"{seconds:.0f} seconds"
