"""Which items BAMA may look at (probe) and which are kept for the headline (report): docs/metrics.md.

Items that belong together are all probe or all report: the clusters of a target term, pairs that share a sentence.
Otherwise weights could be fitted to report items through their neighbours in the probe half.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterable, Sequence

from fedbias_plugin.errors import UserError


def probe_indices(
    strata: Sequence[str], fraction: float, seed: int, units: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """Split items into probe and report items, every stratum in proportion, units whole.

    ``round(fraction * n)`` items become probe items, or as many as whole units allow. Each stratum gives the whole part
    of its share; the items still missing come from the strata with the largest remainders, so a stratum of two items
    may give none at 0.1. What whole units leave over or take too many is made up for in the next stratum.
    Where no split of whole units gives both halves an item, units are split: see :func:`shared_sentences`.
    The same strata, units, fraction and seed give the same split on every machine.

    Args:
        strata: the stratum of every item, for example its bias type; a unit is of its first item's.
        fraction: share of probe items, 0 to 1. 0 gives an empty probe list, 1 an empty report list: a benchmark's
            ``result`` refuses an empty selection, so the caller reports None for that half.
        seed: of the split.
        units: what every item belongs to; without it every item is a unit.

    Returns:
        Indices of the probe and of the report items, both ascending.

    Raises:
        UserError: the fraction is outside [0, 1].
    """
    if not 0.0 <= fraction <= 1.0:
        raise UserError(f"the probe fraction must be between 0 and 1, not {fraction}.")
    members: dict[Hashable, list[int]] = {}
    for index in range(len(strata)):
        members.setdefault(index if units is None else units[index], []).append(index)
    by_stratum: dict[str, list[list[int]]] = {}
    for items in members.values():
        by_stratum.setdefault(strata[items[0]], []).append(items)
    probe = _draw(by_stratum, fraction, seed)
    wanted = _rounded(fraction * len(strata))
    if units is not None and 0 < wanted < len(strata) and not 0 < len(probe) < len(strata):
        return probe_indices(strata, fraction, seed)
    chosen = set(probe)
    return sorted(probe), [index for index in range(len(strata)) if index not in chosen]


def shared_sentences(sentences: Sequence[Iterable[str]], probe: Sequence[int], report: Sequence[int]) -> int:
    """How many of the ``sentences`` of each item stand in both halves.

    >>> shared_sentences([("a", "b"), ("b", "c"), ("d",)], probe=[0], report=[1, 2])
    1
    """
    halves = ({text for index in half for text in sentences[index]} for half in (probe, report))
    return len(set.intersection(*halves))


def units_by_sentence(sentences: Sequence[Iterable[str]]) -> list[int]:
    """Items that share a sentence, or are joined by others that do, are of one unit: the index of its first item.

    >>> units_by_sentence([("a", "b"), ("c",), ("d", "b"), ("d", "e")])
    [0, 1, 0, 0]
    """
    units = list(range(len(sentences)))

    def first(index: int) -> int:
        while units[index] != index:
            index = units[index]
        return index

    holders: dict[str, int] = {}
    for index, texts in enumerate(sentences):
        for text in texts:
            one, other = first(index), first(holders.setdefault(text, index))
            units[max(one, other)] = min(one, other)
    return [first(index) for index in range(len(units))]


def _draw(by_stratum: dict[str, list[list[int]]], fraction: float, seed: int) -> list[int]:
    """Probe items: stratum by stratum whole units in random order, each that brings the count nearer to its share.

    The smallest stratum comes first: what units of 50 items leave over would be all of its share.
    """
    probe: list[int] = []
    shares = _allocate({name: sum(map(len, units)) for name, units in by_stratum.items()}, fraction)
    missing = 0
    for stratum, units in sorted(by_stratum.items(), key=lambda pair: (sum(map(len, pair[1])), pair[0])):
        missing += shares[stratum]
        # A string seed is hashed with SHA-512: the draw does not depend on the platform or on the other strata.
        # Of all its methods Python promises only random() to stay as it is, so the units are sorted by one draw each.
        draw = random.Random(f"{seed}/{stratum}")
        for unit in sorted(units, key=lambda _: draw.random()):
            if abs(missing - len(unit)) < abs(missing):
                probe += unit
                missing -= len(unit)
    return probe


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)


def _allocate(sizes: dict[str, int], fraction: float) -> dict[str, int]:
    """Probe items per stratum by largest remainder; equal remainders go to the larger stratum, then by name."""
    counts = {name: math.floor(fraction * size) for name, size in sizes.items()}
    missing = _rounded(fraction * sum(sizes.values())) - sum(counts.values())
    by_remainder = sorted(sizes, key=lambda name: (counts[name] - fraction * sizes[name], -sizes[name], name))
    for name in by_remainder[: max(0, missing)]:
        counts[name] += 1
    return counts
