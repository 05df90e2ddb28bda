"""The bias score b of a client, the paper's number of what its update prefers (eq. 1 of BAMA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedbias_plugin.metrics.base import Block, metric_class


def bias_blocks(blocks: Mapping[str, Block]) -> list[Block]:
    """The blocks that are terms of the bias score b (eq. 1 of BAMA)."""
    return [block for name, block in blocks.items() if metric_class(name).in_bias_score]


def bias_score(alpha: float, distances: Sequence[float]) -> float:
    """b of a client: ``alpha * (|CrowS - 50| + |SS - 50|)``, percentage points (Zhao et al., eq. 1).

    A benchmark that was not measured has no term.

    >>> bias_score(0.5, [10.0, 4.0])
    7.0

    Args:
        alpha: between 0 and 1.
        distances: ``|value - ideal|`` of every benchmark that counts, at least one.
    """
    if not distances:
        raise ValueError("a bias score needs a CrowS-Pairs score, a StereoSet score, or both")
    return alpha * sum(distances)


def bias_noise(blocks: Mapping[str, Block], alpha: float) -> float | None:
    """Expected bias score of an unbiased model on these items, percentage points (docs/metrics.md).

    ``alpha`` times the sum of the benchmarks' noise floors, as in eq. 1; None when none states one.
    """
    floors = [block.get("noise_floor") for block in bias_blocks(blocks)]
    known = [floor for floor in floors if floor is not None]
    return alpha * sum(known) if known else None
