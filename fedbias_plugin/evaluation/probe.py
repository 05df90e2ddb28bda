"""Which items BAMA may look at (probe) and which are kept for the headline (report): METRICS.md, sections 4 and 5."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from fedbias_plugin.errors import UserError


def probe_indices(strata: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split items into probe and report items, every stratum in proportion.

    ``round(fraction * n)`` items become probe items. Each stratum gives the whole part of its share; the items still
    missing come from the strata with the largest remainders, so a stratum of two items may give none at 0.1.
    The same strata, fraction and seed give the same split on every machine.

    Args:
        strata: the stratum of every item, for example its bias type.
        fraction: share of probe items, 0 to 1. 0 gives an empty probe list, 1 an empty report list: a benchmark's
            ``result`` refuses an empty selection, so the caller reports None for that half.
        seed: of the split.

    Returns:
        Indices of the probe and of the report items, both ascending.

    Raises:
        UserError: the fraction is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the probe fraction must be between 0 and 1, not {fraction}.")
    members: dict[str, list[int]] = {}
    for index, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(index)
    probe: list[int] = []
    for stratum, count in _allocate({name: len(items) for name, items in members.items()}, fraction).items():
        # A string seed is hashed with SHA-512: the draw does not depend on the platform or on the other strata.
        # Of all its methods Python promises only random() to stay as it is, so the items are sorted by one draw each.
        draw = random.Random(f"{seed}/{stratum}")
        probe += sorted(members[stratum], key=lambda _: draw.random())[:count]
    chosen = set(probe)
    return sorted(probe), [index for index in range(len(strata)) if index not in chosen]


def _allocate(sizes: dict[str, int], fraction: float) -> dict[str, int]:
    """Probe items per stratum by largest remainder; equal remainders go to the larger stratum, then by name."""
    counts = {name: math.floor(fraction * size) for name, size in sizes.items()}
    missing = math.floor(fraction * sum(sizes.values()) + 0.5) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda name: (counts[name] - fraction * sizes[name], -sizes[name], name))
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts
