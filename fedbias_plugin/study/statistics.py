"""Means, intervals and paired tests over the seeds of a study, and over the items of two runs (docs/metrics.md)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.metrics.base import metric_class

if TYPE_CHECKING:
    from fedbias_plugin.study.runs import Run

LEVEL = 0.95
ROUNDING = 1e-9
"""A standard deviation below this, relative to the mean or to 1, is rounding: the values are equal."""
BOOTSTRAP_SEED = 0
UNITS = {"crows_pairs": "pair", "stereoset": "term"}
Interval = tuple[float, float]
ANYTHING: Interval = (-math.inf, math.inf)


@dataclass(frozen=True)
class Spread:
    """A measure over seeds.

    Attributes:
        mean: over the seeds.
        sd: standard deviation with n - 1; None for one seed.
        ci95: Student's t interval of the mean, cut to what is possible; None for one seed.
        n: seeds.
    """

    mean: float
    sd: float | None
    ci95: Interval | None
    n: int


@dataclass
class SeedComparison:
    """Second minus first, paired by seed.

    Attributes:
        difference: spread of the differences.
        p_value: two-sided, of a paired t-test; None with fewer than two seeds in common, or when all differ equally.
        p_holm: ``p_value`` adjusted for the comparisons beside it, None before :func:`correct`.
    """

    difference: Spread
    p_value: float | None
    p_holm: float | None = None


def spread(values: Iterable[float], possible: Interval = ANYTHING) -> Spread | None:
    """Mean, standard deviation and 95% t interval over seeds; None without values.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, sd=1.0, ci95=(-0.484137711..., 4.484137711...), n=3)
    >>> spread([1.0, 2.0, 3.0], (0.0, 50.0)).ci95
    (0.0, 4.484137711...)

    Args:
        values: one a seed.
        possible: what the interval is cut to.
    """
    known = list(values)
    n = len(known)
    if not n:
        return None
    mean = math.fsum(known) / n
    if n == 1:
        return Spread(mean, None, None, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    if sd <= ROUNDING * max(1.0, abs(mean)):
        return Spread(mean, 0.0, (mean, mean), n)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, (1.0 + LEVEL) / 2.0)) * sd / math.sqrt(n)
    return Spread(mean, sd, (max(mean - half, possible[0]), min(mean + half, possible[1])), n)


def compare_seeds(
    first: Mapping[Any, float], second: Mapping[Any, float], possible: Interval = ANYTHING
) -> SeedComparison | None:
    """Differences ``second - first`` of the seeds (seed -> value) that both have; None without one in common."""
    differences = [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]
    difference = spread(differences, possible)
    if difference is None:
        return None
    if not difference.sd:  # one seed, or equal differences: nothing to test against
        return SeedComparison(difference, None)
    from scipy.special import stdtr

    statistic = difference.mean / (difference.sd / math.sqrt(difference.n))
    return SeedComparison(difference, 2.0 * float(stdtr(difference.n - 1, -abs(statistic))))


def correct(comparisons: Iterable[SeedComparison | None]) -> None:
    """Set p adjusted by Holm; comparisons without a p count for nothing."""
    from fedbias_plugin.metrics.statistics import holm

    tested = [one for one in comparisons if one and one.p_value is not None]
    for one, p_value in zip(tested, holm([one.p_value for one in tested]), strict=True):  # type: ignore[misc]
        one.p_holm = p_value


def p_text(p_value: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


@dataclass(frozen=True)
class ItemDifference:
    """Second run minus first on the same report items of one metric.

    Attributes:
        metric: its name.
        difference: of the values.
        ci95: paired bootstrap over items, or Student's t over groups of items; None where there are too few.
        p_value: McNemar's where items are decided one way or the other, else the bootstrap's; the paired t-test's over
            groups. Not corrected.
        groups: items, or groups whose items agree, so that groups are compared.
        unit: what one of them is called.
    """

    metric: str
    difference: float
    ci95: Interval | None
    p_value: float
    groups: int
    unit: str


def item_differences(first: Run, second: Run) -> list[ItemDifference]:
    """The differences between two runs, last measured; none of metrics without scores of the same items in both."""
    names = (first.folder / "scores").glob(f"round_{first.last_measured.round:03d}_*.npz")
    found = (_item_difference(name, first, second) for name in sorted(path.stem.split("_", 2)[2] for path in names))
    return [one for one in found if one is not None]


def _item_difference(name: str, first: Run, second: Run) -> ItemDifference | None:
    import numpy as np

    from fedbias_plugin.metrics.statistics import mcnemar, paired_items

    one, other = _report_outcomes(name, first), _report_outcomes(name, second)
    if one is None or other is None or list(one[0]) != list(other[0]):
        return None
    (_, before, groups), (_, after, _) = one, other
    unit = UNITS.get(name, "item" if groups is None else "group")
    found = paired_items(before, after, groups, seed=BOOTSTRAP_SEED)
    if groups is None and np.isin(np.concatenate([before, after]), (0.0, 50.0, 100.0)).all():
        found = replace(found, p_value=mcnemar(before == 100.0, after == 100.0).p_value)
    return ItemDifference(name, found.difference, found.ci95, found.p_value, found.groups, unit)


def _report_outcomes(name: str, run: Run) -> tuple[Any, Any, Any] | None:
    """Ids, values and groups of the items that never weighed clients, or of all items where there are no others."""
    import numpy as np

    path = run.folder / "scores" / f"round_{run.last_measured.round:03d}_{name}.npz"
    if not path.is_file():
        return None
    probe_file = run.folder / "probe.json"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            scores = dict(arrays)
        outcomes = metric_class(name).outcomes(scores)
        if outcomes is None:
            return None
        probe = json.loads(probe_file.read_bytes()).get(name, {}).get("probe_ids", []) if probe_file.is_file() else []
        values, groups = outcomes
        report = ~np.isin(scores["ids"], probe)
        kept = (report if report.any() else ~report) & ~np.isnan(values)
        if not kept.any():
            return None
        return scores["ids"][kept], values[kept], None if groups is None else groups[kept]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} or probe.json of its run is damaged: {first_line(error)}.") from None
