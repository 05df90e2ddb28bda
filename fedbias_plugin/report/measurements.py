"""Which items the runs of a study were measured on; runs of other items are never averaged or paired with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError, printable

if TYPE_CHECKING:
    from fedbias_plugin.report.study import StudyRun

BENCHMARKS = {"crows_pairs": "CrowS-Pairs", "stereoset": "StereoSet"}
MOST_NAMES = 5
Measurement = tuple[Any, ...]


def split_by_items(runs: Sequence[StudyRun]) -> tuple[list[StudyRun], list[str]]:
    """The runs that were measured like most of them, and a sentence for every group that was not.

    Two runs were measured alike when, for each benchmark that both have, the number of all items, the number and kind
    of the headline's items (report or all), the sentence score and the file (sha256, where ``run.json`` says it) agree.
    Which items are probe items depends on the seed by design and may differ.

    Raises:
        UserError: there is no largest group.
    """
    kept, warnings = list(runs), []
    for benchmark, title in BENCHMARKS.items():
        groups: dict[Measurement, list[StudyRun]] = {}
        for run in kept:
            key = measurement(run, benchmark)
            if key is not None:
                groups.setdefault(key, []).append(run)
        groups = _with_unnamed_files(groups)
        ranked = sorted(groups.items(), key=lambda item: len(item[1]), reverse=True)
        if len(ranked) > 1 and len(ranked[0][1]) == len(ranked[1][1]):
            raise UserError(_no_majority(title, ranked[0], ranked[1]))
        for key, others in ranked[1:]:
            warnings.append(
                f"Left out, measured on other {title} items ({_describe(key)}; the others on "
                f"{_describe(ranked[0][0])}): {_names(others)}."
            )
            kept = [run for run in kept if run not in others]
    return kept, warnings


def measurement(run: StudyRun, benchmark: str) -> Measurement | None:
    """What must agree before scores of two runs are put together; None for a benchmark that was not measured.

    Returns:
        Number of all items (None where unknown), number and kind of the headline's, reduction, sha256 of the file.
    """
    block = getattr(run.last_measured.global_, benchmark)
    if not block:
        return None
    data = run.details.get("data")
    source = data.get(benchmark) if isinstance(data, Mapping) else None
    sha = source.get("sha256") if isinstance(source, Mapping) else None
    full = block.get("full")
    whole = full.get("n") if isinstance(full, Mapping) else None
    return (whole, block.get("n"), block.get("items"), block.get("reduction"), str(sha) if sha else None)


def _with_unnamed_files(groups: dict[Measurement, list[StudyRun]]) -> dict[Measurement, list[StudyRun]]:
    """Runs that do not say their file join the largest group that agrees in all else."""
    for key in [key for key in groups if key[-1] is None]:
        named = [other for other in groups if other[:-1] == key[:-1] and other[-1] is not None]
        if named:
            largest = max(named, key=lambda other: len(groups[other]))
            groups[largest] = groups[largest] + groups.pop(key)
    return groups


def _no_majority(title: str, one: tuple[Measurement, list[StudyRun]], other: tuple[Measurement, list[StudyRun]]) -> str:
    return (
        f"The runs were measured on different {title} items and cannot share a report: {_names(one[1])} on "
        f"{_describe(one[0])}; {_names(other[1])} on {_describe(other[0])}. Give the folders of one kind only."
    )


def _describe(key: Measurement) -> str:
    whole, n, items, reduction, sha = key
    kind = f"{n} {items or ''} items".replace("full items", "items").replace("  ", " ")
    parts = [kind, f"of {whole}" if whole not in (None, n) else "", f"reduction {reduction}" if reduction else ""]
    parts.append(f"file {sha[:8]}" if sha else "")
    return printable(", ".join(part for part in parts if part)).replace("\n", " ")


def _names(runs: Iterable[StudyRun]) -> str:
    names = [run.name for run in runs]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
