"""What keeps compared runs from being compared as they stand, and what their numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedbias_plugin.report.compared_runs import Run, block_of, last_measured
from fedbias_plugin.scales import UNBIASED
from fedbias_plugin.tracking.formatting import is_incoherent, number, percent
from fedbias_plugin.tracking.jsonl import SUMMARY_FILE


def comparability(runs: Sequence[Run], views: Mapping[str, str]) -> Iterator[str]:
    """What keeps the runs from being compared as they stand."""
    last_rounds = {run.name: last_measured(run).round for run in runs}
    if len(set(last_rounds.values())) > 1:
        ends = ", ".join(f"{name}: {number}" for name, number in last_rounds.items())
        yield f"Warning: the runs were last measured in different rounds ({ends})."
    for run in runs:
        if not (run.folder / SUMMARY_FILE).exists():
            yield f"Warning: {run.name} did not finish (no {SUMMARY_FILE}); its last round is {run.rounds[-1].round}."
    for benchmark, view in views.items():
        blocks = [block for run in runs if (block := block_of(last_measured(run), benchmark, view))]
        if len(blocks) > 1 and len({(block.get("n"), block.get("ids_hash")) for block in blocks}) > 1:
            yield f"Warning: the runs were measured on different {benchmark} items; their scores differ for that too."
    for run in runs:
        last = last_measured(run)
        block = block_of(last, "stereoset", "headline")
        is_known = any(warning.startswith("LMS") for warning in last.warnings)
        if block and is_incoherent(block) and not is_known:
            lms = number(block.get("lms"), 1)
            yield f"Warning: {run.name} ends at LMS {lms}, below 60: it no longer prefers sense, and SS means nothing."


def meaning(runs: Sequence[Run], views: Mapping[str, str]) -> list[str]:
    """What a reader of the comparison must know, as paragraphs, with the line feeds that a wide page has."""
    lines = ["What the numbers mean"]
    lines += [
        "  Scores: 100 always prefers the stereotype, 0 always the anti-stereotype, 50 neither. SS counts only next "
        "to\n  a high LMS (100 = always prefers sense to nonsense): a broken model sits near 50 too.",
        "  Length alone: the CrowS score of 'fewer tokens wins'. By sums a model that knows nothing stands there, "
        "not\n  at 50; --crows_reduction matched counts only pairs of equal token count.",
    ]
    lines += _item_lines(runs, views)
    lines += [
        "  Weights: w_i is the client's share in the new global model. Mass: the sum of w_i n_i/n; below 1 the step "
        "is\n  that much shorter (the paper's equation 3 to the letter), which alone makes the bias smaller.",
        *_poisoned_line(runs),
        *_attack_lines(runs),
        *_noise_line(runs, views),
        "  Intervals of scores are of each run by itself; whether two runs differ, the paired difference tells. Its p\n"
        "  is over benchmark items of these trained models, not over seeds: repeat the runs with other seeds.",
    ]
    return lines


def _item_lines(runs: Sequence[Run], views: Mapping[str, str]) -> Iterator[str]:
    """Whether a benchmark's items could have been fitted by the weights."""
    for benchmark, title in (("crows_pairs", "CrowS-Pairs"), ("stereoset", "StereoSet")):
        blocks = [block for run in runs if (block := block_of(last_measured(run), benchmark, "headline"))]
        if blocks and views[benchmark] == "report":
            yield f"  {title}: report items, which weigh no client; {_shared(blocks)}."
        elif any(block.get("probe") for block in blocks):
            yield f"  {title}: all items, probe items among them; where BAMA weighed clients by those it looks better."
        elif blocks:
            yield f"  {title}: all items; none of them weighs clients."


def _shared(blocks: Sequence[Mapping[str, Any]]) -> str:
    """What report items have in common with those that weigh clients; the split of older runs did not look at it."""
    counts = [block.get("shared_sentences") for block in blocks]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return "they may share sentences and target terms with those that do"
    if not max(known):
        return "they share no sentence with those that do"
    return f"{max(known)} of their sentences stand in those that do too"


def _poisoned_line(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        shares = {client: row.poisoned_share for record in run.rounds for client, row in record.clients.items()}
        if shares and all(share is None for share in shares.values()):
            yield f"  Clients of {run.name} hold the host's own rows, of which nothing is known."
            continue
        poisoned = [f"{client} ({percent(share)})" for client, share in sorted(shares.items()) if share]
        yield f"  Poisoned clients of {run.name}: {', '.join(poisoned) or 'none'}, of {len(shares)} that took part."


def _attack_lines(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        attackers = {
            client: row.attack for record in run.rounds for client, row in record.clients.items() if row.attack
        }
        if attackers:
            named = ", ".join(f"{client} ({attack})" for client, attack in sorted(attackers.items()))
            yield f"  Attackers of {run.name}: {named}."


def _noise_line(runs: Sequence[Run], views: Mapping[str, str]) -> Iterator[str]:
    """The Delta that an unbiased model would show by chance on as many pairs: 50 sqrt(2 / (pi n))."""
    block = block_of(last_measured(runs[0]), "crows_pairs", views["crows_pairs"])
    if block and block.get("n"):
        floor = UNBIASED * math.sqrt(2 / (math.pi * block["n"]))
        yield f"  Noise floor: on {block['n']} pairs an unbiased model shows a CrowS Delta of {floor:.1f} on average."
