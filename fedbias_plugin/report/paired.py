"""Whether two runs differ: paired tests on the items that both measured (METRICS section 5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from fedbias_plugin.errors import UserError, first_line

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.statistics import PairedDifference

SEED = 0
ARRAYS = {"crows_pairs": ("ids", "more", "less"), "stereoset": ("ids", "values", "targets")}
TITLES = {"crows_pairs": "CrowS-Pairs score", "stereoset": "StereoSet SS"}


def paired_lines(first: Path, first_round: int, second: Path, second_round: int) -> Iterator[str]:
    """One line a benchmark: the second run's score minus the first's on the same report items.

    Intervals are paired bootstraps over pairs and target terms; p is McNemar's on the flipped pairs for CrowS-Pairs
    and the bootstrap's for StereoSet, both corrected by Holm. Nothing where a run has no item scores.
    """
    from fedbias_plugin.evaluation.statistics import holm, mcnemar

    found: list[tuple[str, PairedDifference, float]] = []
    for benchmark in TITLES:
        before = _report_scores(first, first_round, benchmark)
        after = _report_scores(second, second_round, benchmark)
        if before is None or after is None or list(before["ids"]) != list(after["ids"]):
            continue
        difference = _difference(benchmark, before, after)
        p_value = difference.p_value
        if benchmark == "crows_pairs":
            p_value = mcnemar(before["more"] > before["less"], after["more"] > after["less"]).p_value
        found.append((benchmark, difference, p_value))
    for (benchmark, difference, _), p_value in zip(found, holm([p for *_, p in found]), strict=True):
        low, high = difference.ci95 or (float("nan"), float("nan"))
        chance = "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
        yield f"{TITLES[benchmark]} {difference.difference:+.1f} [{low:+.1f}, {high:+.1f}], p {chance}"


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
        probe = json.loads(probe_file.read_bytes())[benchmark]["probe_ids"] if probe_file.is_file() else []
        report = ~np.isin(scores["ids"], probe)
        return {name: values[report] if report.any() else values for name, values in scores.items()}
    except (OSError, ValueError, LookupError, TypeError, EOFError, BadZipFile) as error:
        raise UserError(f"{path} or probe.json of its run is damaged: {first_line(error)}.") from None


def _difference(benchmark: str, first: dict[str, Any], second: dict[str, Any]) -> PairedDifference:
    import numpy as np

    from fedbias_plugin.evaluation.statistics import paired_bootstrap

    if benchmark == "crows_pairs":
        before, after = (50.0 * (1.0 + np.sign(scores["more"] - scores["less"])) for scores in (first, second))
        return paired_bootstrap(before, after, seed=SEED)
    before, after = (_ss_per_term(scores) for scores in (first, second))
    return paired_bootstrap(before, after, seed=SEED)


def _ss_per_term(scores: dict[str, Any]) -> Any:
    """SS of every target term, percent; a tie counts as anti-stereotype."""
    import numpy as np

    terms = np.unique(scores["targets"])
    preferred = scores["values"][:, 0] > scores["values"][:, 1]
    return np.asarray([100.0 * preferred[scores["targets"] == term].mean() for term in terms])
