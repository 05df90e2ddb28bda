"""How much of one difference another takes back: the share of what privacy adds that counterfactual rows remove."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.comparisons import Answer
from fedbias_plugin.study.statistics import LEVEL, Spread
from fedbias_plugin.study.table import Cell, Column, Row, Table, spread_cell
from fedbias_plugin.study.verdicts import Pair


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread | None:
    """The ratio of two means paired by seed, with Fieller's 95% interval.

    None where the lower mean differs from 0 in no way that is significant at 5%: its interval would be no interval.

    >>> ratio([2.0, 2.2, 1.8], [4.0, 4.1, 3.9]).mean
    0.5
    >>> ratio([2.0, 2.2, 1.8], [4.0, -4.0, 0.5]) is None
    True

    Source: Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    n = len(below)
    if n < 2:
        return None
    from scipy.special import stdtrit

    top, bottom = math.fsum(above) / n, math.fsum(below) / n

    def covariance(one: Sequence[float], other: Sequence[float], means: tuple[float, float]) -> float:
        pairs = zip(one, other, strict=True)
        return math.fsum((a - means[0]) * (b - means[1]) for a, b in pairs) / (n - 1) / n

    squared = float(stdtrit(n - 1, (1.0 + LEVEL) / 2.0)) ** 2
    of_bottom = bottom**2 - squared * covariance(below, below, (bottom, bottom))
    if of_bottom <= 0:
        return None
    of_both = top * bottom - squared * covariance(above, below, (top, bottom))
    of_top = top**2 - squared * covariance(above, above, (top, top))
    half = math.sqrt(max(0.0, of_both**2 - of_bottom * of_top))
    return Spread(top / bottom, None, ((of_both - half) / of_bottom, (of_both + half) / of_bottom), n)


def share_tables(answers: Sequence[Answer]) -> Iterator[Table]:
    """Of every comparison that ``takes_back`` another: a row a pair, a share for every metric."""
    known = {answer.comparison.id: answer for answer in answers}
    for answer in answers:
        other = known.get(answer.comparison.takes_back)
        if other is None:
            continue
        baselines = {id(pair.arm): pair for pair in other.pairs}
        metrics = [outcome.metric for outcome in answer.pooled]
        rows = [
            Row((pair.name,), tuple(_cell(baselines[id(pair.reference)], pair, metric) for metric in metrics))
            for pair in answer.pairs
            if id(pair.reference) in baselines
        ]
        columns = tuple(Column(metric_class(one).short, f"share_{one.replace('/', '_')}", "share %") for one in metrics)
        if rows:
            yield Table(
                f"share_{answer.comparison.id}",
                f"{answer.comparison.title}: share taken back",
                f"Percent of the difference of “{other.comparison.title}” that is taken back, by the means over the "
                "seeds, with Fieller's 95% interval; below 0 it grows. A dash: that difference is not significant at "
                "5% for this pair, so that there is nothing to take a share of.",
                ("pair",),
                columns,
                tuple(rows),
            )


def _cell(added: Pair, taken: Pair, metric: str) -> Cell:
    """Of a difference by ``added``, whose arm is the baseline of ``taken``."""
    if metric not in added.outcomes:
        return Cell(text="–")
    one, other = added.outcomes[metric].values, taken.outcomes[metric].values
    seeds = sorted(one[0].keys() & other[0].keys())
    adds = [one[1][seed] - one[0][seed] for seed in seeds]
    found = ratio([other[0][seed] - other[1][seed] for seed in seeds], adds)
    if found is None or found.ci95 is None:
        return Cell(text="–")
    low, high = found.ci95
    return spread_cell(Spread(100 * found.mean, None, (100 * low, 100 * high), found.n), ".0f")
