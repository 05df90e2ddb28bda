"""Whether two runs differ: paired tests on the items that both measured (METRICS section 5)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from fedbias_plugin.errors import UserError, first_line

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.statistics import PairedDifference

SEED = 0
ARRAYS = {"crows_pairs": ("ids", "more", "less"), "stereoset": ("ids", "values", "targets")}
TITLES = {"crows_pairs": "CrowS-Pairs score", "stereoset": "StereoSet SS"}
GROUPS = {"crows_pairs": "pair", "stereoset": "term"}


@dataclass(frozen=True)
class ItemDifference:
    """Second run minus first on the same report items of one benchmark.

    Attributes:
        benchmark: ``crows_pairs`` or ``stereoset``.
        difference: of the scores, percentage points.
        ci95: paired bootstrap over pairs, or Student's t over target terms; None for a single pair or below 5 terms.
        p_value: McNemar's on the flipped pairs for CrowS-Pairs, the paired t-test's for StereoSet; not corrected.
        groups: pairs or target terms.
    """

    benchmark: str
    difference: float
    ci95: tuple[float, float] | None
    p_value: float
    groups: int


def item_differences(first: Path, first_round: int, second: Path, second_round: int) -> list[ItemDifference]:
    """The differences between two runs, given as folder and round; none where a run has no scores of the same items."""
    from fedbias_plugin.evaluation.statistics import mcnemar

    found = []
    for benchmark in TITLES:
        before = _report_scores(first, first_round, benchmark)
        after = _report_scores(second, second_round, benchmark)
        if before is None or after is None or list(before["ids"]) != list(after["ids"]):
            continue
        difference = _difference(benchmark, before, after)
        p_value = difference.p_value
        if benchmark == "crows_pairs":
            p_value = mcnemar(before["more"] > before["less"], after["more"] > after["less"]).p_value
        found.append(ItemDifference(benchmark, difference.difference, difference.ci95, p_value, difference.groups))
    return found


def paired_lines(first: Path, first_round: int, second: Path, second_round: int) -> Iterator[str]:
    """One line a benchmark of :func:`item_differences`, p corrected by Holm."""
    from fedbias_plugin.evaluation.statistics import holm

    found = item_differences(first, first_round, second, second_round)
    for one, p_value in zip(found, holm([one.p_value for one in found]), strict=True):
        interval = f" [{one.ci95[0]:+.1f}, {one.ci95[1]:+.1f}]" if one.ci95 else ""
        groups = f"{one.groups} {GROUPS[one.benchmark]}{'' if one.groups == 1 else 's'}"
        few = "" if one.ci95 else ", too few for an interval"
        chance = "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
        yield f"{TITLES[one.benchmark]} {one.difference:+.1f}{interval} ({groups}{few}), p {chance}"


def _report_scores(folder: Path, round_number: int, benchmark: str) -> dict[str, Any] | None:
    """Arrays of the items that never weighed clients, or of all items where there are no others."""
    import numpy as np

    path = folder / "scores" / f"round_{round_number:03d}_{benchmark}.npz"
    if not path.is_file():
        return None
    probe_file = folder / "probe.json"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            scores = {name: arrays[name] for name in ARRAYS[benchmark]}
            counted = _counted(arrays)
        probe = json.loads(probe_file.read_bytes())[benchmark]["probe_ids"] if probe_file.is_file() else []
        report = ~np.isin(scores["ids"], probe)
        kept = (report if report.any() else ~report) & counted
        return {name: values[kept] for name, values in scores.items()} if kept.any() else None
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} or probe.json of its run is damaged: {first_line(error)}.") from None


def _counted(arrays: Mapping[str, Any]) -> Any:
    """Which items the score is of: all, but under ``matched`` pairs of equal token count."""
    import numpy as np

    if "reduction" in arrays and str(arrays["reduction"]) == "matched":
        return arrays["more_tokens"] == arrays["less_tokens"]
    return np.ones(len(arrays["ids"]), dtype=bool)


def _difference(benchmark: str, first: dict[str, Any], second: dict[str, Any]) -> PairedDifference:
    import numpy as np

    from fedbias_plugin.evaluation.statistics import paired_bootstrap, paired_t

    if benchmark == "crows_pairs":
        before, after = (50.0 * (1.0 + np.sign(scores["more"] - scores["less"])) for scores in (first, second))
        return paired_bootstrap(before, after, seed=SEED)
    before, after = (_ss_per_term(scores) for scores in (first, second))
    return paired_t(before, after)


def _ss_per_term(scores: dict[str, Any]) -> Any:
    """SS of every target term, percent; a tie counts as anti-stereotype."""
    import numpy as np

    terms = np.unique(scores["targets"])
    preferred = scores["values"][:, 0] > scores["values"][:, 1]
    return np.asarray([100.0 * preferred[scores["targets"] == term].mean() for term in terms])
