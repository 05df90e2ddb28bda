"""Seeded draws that are the same on every machine and every Python.

Python promises that :meth:`random.Random.random` never changes for a given seed, and promises nothing about
``shuffle`` and ``sample``; so the one permutation the plugin needs is written out here on top of ``random()``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def generator(purpose: str, seed: int) -> random.Random:
    """A generator of its own for each purpose, so that one draw more here changes nothing there."""
    return random.Random(f"fedbias:{purpose}:{int(seed)}")


def permuted(items: Sequence[Item], rng: random.Random) -> list[Item]:
    """``items`` in a random order (Fisher-Yates); the input is left as it is."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        result[last], result[other] = result[other], result[last]
    return result
