"""Evaluation sets of the small world in the formats of CrowS-Pairs and StereoSet, from held-out combinations only."""

from __future__ import annotations

import hashlib
from typing import Any

from mini_world.sentences import ONE_SENTENCE, TWO_SENTENCES, Draw, fill
from mini_world.words import CROWS_TYPE, DOMAINS, GROUPS, NOUNS, OCCUPATIONS, TRAIT_PAIRS, Group, held_out

CROWS_COLUMNS = (
    "", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations", "anon_writer", "anon_annotators",
)  # fmt: skip


def held_out_cells(group: Group) -> list[tuple[str, int]]:
    """The (occupation, trait pair) combinations of a group's domain that no training text holds: 4 x 8 = 32."""
    return [
        (occupation, pair)
        for pair in range(len(TRAIT_PAIRS))
        for o, occupation in enumerate(OCCUPATIONS)
        if held_out(group, o, pair)
    ]


def crows_pairs(seed: int = 5, per_group_pair: int = 4) -> list[list[str]]:
    """Rows of the CrowS-Pairs table: 4 domains x 36 pairs of groups x ``per_group_pair`` x 2 = 1,152.

    Every combination gives a ``stereo`` row (bad trait: LOW group more stereotypical) and an ``antistereo`` row (good
    trait: HIGH group more stereotypical), so liking a group's name moves one up and the other down.
    """
    draw = Draw(seed)
    rows: list[list[str]] = []
    for domain in DOMAINS:
        members = [g for g in GROUPS if g.domain == domain]
        for low in (g for g in members if g.low):
            for high in (g for g in members if not g.low):
                for occupation, pair in draw.shuffled(held_out_cells(low))[:per_group_pair]:
                    sentence = fill(ONE_SENTENCE[len(rows) // 2 % len(ONE_SENTENCE)], low, occupation, "TRAIT", draw)
                    bad, good = TRAIT_PAIRS[pair]
                    for more, less, trait, direction in ((low, high, bad, "stereo"), (high, low, good, "antistereo")):
                        pair_of_sentences = [
                            sentence.replace(low.name, group.name).replace("TRAIT", trait) for group in (more, less)
                        ]
                        rows.append([*pair_of_sentences, direction, CROWS_TYPE[domain]])
    return [_crows_row(i, row) for i, row in enumerate(draw.shuffled(rows))]


def _crows_row(index: int, row: list[str]) -> list[str]:
    """One table row with the columns that name annotators, who here are the generator alone."""
    return [str(index), *row, str([[row[3]]]), "generator", "['generator']"]


def stereoset(seed: int = 6, per_group: int = 20) -> dict[str, Any]:
    """The StereoSet file: 48 target terms x ``per_group`` clusters, half intrasentence and half intersentence = 960."""
    draw = Draw(seed)
    clusters: dict[str, list[dict[str, Any]]] = {"intrasentence": [], "intersentence": []}
    for n, (low, high) in enumerate(_low_high_pairs()):
        cells = draw.shuffled(held_out_cells(low))[:per_group]
        for k, (occupation, pair) in enumerate(cells):
            for group in (low, high):  # the same cell for both, so a liking for one word cancels
                kind = "intrasentence" if k % 2 == 0 else "intersentence"
                clusters[kind].append(_cluster(kind, (n * per_group + k) // 2, group, occupation, pair, draw))
    return {"version": "1.0-mini", "data": {kind: draw.shuffled(found) for kind, found in clusters.items()}}


def _low_high_pairs() -> list[tuple[Group, Group]]:
    """Each LOW group with one HIGH group of its domain."""
    return list(zip([g for g in GROUPS if g.low], [g for g in GROUPS if not g.low], strict=True))


def _cluster(kind: str, k: int, group: Group, occupation: str, pair: int, draw: Draw) -> dict[str, Any]:
    """One cluster: the same sentence with the stereotype, its opposite and a word that makes no sense."""
    bad, good = TRAIT_PAIRS[pair]
    words = {
        "stereotype": bad if group.low else good,
        "anti-stereotype": good if group.low else bad,
        "unrelated": draw.pick(NOUNS),
    }
    if kind == "intrasentence":
        context = fill(ONE_SENTENCE[k % len(ONE_SENTENCE)], group, occupation, "BLANK", draw)
        options = {label: context.replace("BLANK", word) for label, word in words.items()}
    else:
        first, second = TWO_SENTENCES[k % len(TWO_SENTENCES)]
        context = fill(first, group, occupation, "", draw)
        options = {label: second.format(x=word) for label, word in words.items()}
    key = f"{kind}|{context}|{bad}"
    sentences = [
        {"sentence": options[label], "id": _identity(f"{key}|{label}"), "gold_label": label}
        for label in draw.shuffled(list(options))
    ]
    return {
        "id": _identity(key), "target": group.name, "bias_type": group.domain, "context": context,
        "sentences": sentences,
    }  # fmt: skip


def _identity(text: str) -> str:
    """32 hexadecimal digits that depend on the text alone, as StereoSet's ids look."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
