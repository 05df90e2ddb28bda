"""What the words of the reports mean, once for all of them, and what the numbers of ``fedbias compare`` mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.flags import read_yaml
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.metrics.formatting import percent
from fedbias_plugin.metrics.gendered import SECTION
from fedbias_plugin.study.frame import Study
from fedbias_plugin.study.runs import Run

if TYPE_CHECKING:
    import pandas as pd

TEMPLATES = Path(__file__).parent / "templates"
TERMS = {
    "crows_pairs": ("Score, SS, Δ", "Length alone"),
    "stereoset": ("Score, SS, Δ", "LMS, ICAT"),
    "": ("Weight, mass",),
}
NAMES = {"crows_pairs": "CrowS-Pairs", "stereoset": "StereoSet"}


def words() -> dict[str, str]:
    """Term -> what it means."""
    return read_yaml(str(TEMPLATES / "words.yaml"), "words")


def meaning(study: Study, views: Mapping[str, str]) -> list[str]:
    """What a reader of the comparison must know, a line a paragraph; ``views``: metric -> which items are shown."""
    from fedbias_plugin.metrics.statistics import noise_floor

    known = words()
    terms = dict.fromkeys(term for metric, own in TERMS.items() if not metric or metric in views for term in own)
    if any(metric_class(name).section == SECTION for name in views):
        terms["Gender metrics"] = None
    found = [f"{term}: {known[term]}".replace("Δ", "Delta") for term in terms]
    measured = {name: study.last[study.last["metric"] == name] for name in views}
    of_items: dict[tuple[str, str], list[str]] = {}  # metrics of a section share a line
    for name in [name for name in views if metric_class(name).ideal is not None and len(measured[name])]:
        shared = study.last[study.last["metric"] == f"{name}/shared_sentences"]
        items = _items(measured[name]["part"], shared[shared["part"] == ""]["value"], views[name])
        key = metric_class(name).section or name, items
        of_items.setdefault(key, []).append(NAMES.get(name, metric_class(name).title))
    found += [f"{'; '.join(names)}: {items}" for (_, items), names in of_items.items()]
    if "crows_pairs" in views:
        of_first = measured["crows_pairs"].set_index(["run", "part"])["n"]
        pairs = of_first.get((study.runs[0].name, views["crows_pairs"]), 0.0)
        what = f"on {pairs:.0f} pairs an unbiased model shows a CrowS Delta of"
        found += [f"Noise floor: {what} {noise_floor(int(pairs)):.1f} on average."] if pairs > 0 else []
    found += [
        *_clients(study.runs),
        "Intervals of scores are of each run by itself; whether two runs differ, the paired difference tells. Its p is "
        "over benchmark items of these trained models, not over seeds: repeat the runs with other seeds.",
    ]
    return ["What the numbers mean", *(f"  {line}" for line in found)]


def _items(parts: pd.Series, shared: pd.Series, view: str) -> str:
    """Whether the weights could have been fitted to a metric's items.

    Args:
        parts: those of the metric, of every run.
        shared: how many sentences of report items stand in probe items too, of the runs that know it.
        view: which items are shown.
    """
    if view != "report":
        if "probe" not in set(parts):
            return "all items; none of them weighs clients."
        return "all items, probe items among them; where BAMA weighed clients by those it looks better."
    said = "they share no sentence with those that do"
    if len(shared) < (parts == "").sum():  # the split of older runs did not look at it
        said = "they may share sentences and target terms with those that do"
    elif shared.max():
        said = f"{shared.max():.0f} of their sentences stand in those that do too"
    return f"report items, which weigh no client; {said}."


def _clients(runs: Sequence[Run]) -> Iterator[str]:
    """Which clients of each run are poisoned, then which attack."""
    attacks = []
    for run in runs:
        shares = {client: row.poisoned_share for client, row in run.clients.items()}
        if shares and all(share is None for share in shares.values()):
            yield f"Clients of {run.name} hold the host's own rows, of which nothing is known."
        else:
            poisoned = [f"{client} ({percent(share)})" for client, share in sorted(shares.items()) if share]
            yield f"Poisoned clients of {run.name}: {', '.join(poisoned) or 'none'}, of {len(shares)} that took part."
        attackers = [f"{client} ({row.attack})" for client, row in sorted(run.clients.items()) if row.attack]
        attacks += [f"Attackers of {run.name}: {', '.join(attackers)}."] * bool(attackers)
    yield from attacks
