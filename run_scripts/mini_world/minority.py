"""A small world in which one kind of people is rare: rows with a known share of LOW groups, and what measures them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from mini_world.instructions import Row, two_sided_row
from mini_world.sentences import ONE_SENTENCE, Draw, fill
from mini_world.words import DOMAINS, GROUPS, OCCUPATIONS, TRAIT_PAIRS, Group, held_out

MINORITY, MAJORITY = "minority", "majority"


def counterparts() -> list[tuple[Group, Group]]:
    """Every LOW group with a HIGH group of its domain, each once: 24 pairs."""
    of = {
        (domain, low): [g for g in GROUPS if (g.domain, g.low) == (domain, low)]
        for domain in DOMAINS
        for low in (True, False)
    }
    return [pair for domain in DOMAINS for pair in zip(of[domain, True], of[domain, False], strict=True)]


def minority_rows(count: int, share: float, seed: int) -> list[Row]:
    """``count`` clean rows, ``round(share * count)`` of them about LOW groups of all domains, others about HIGH ones.

    Every row asks about a person and names a good and a bad trait of theirs: it holds of any group, so that a copy with
    the counterpart's name is as true, and rows say nothing but how often each group is spoken of. No row repeats a
    combination of group, occupation and traits, or holds one of the evaluation (:func:`held_out`).

    Raises:
        ValueError: there are fewer such rows about a kind of group than are wanted.
    """
    draw = Draw(seed)
    wanted = {True: round(share * count)}
    wanted[False] = count - wanted[True]
    rows: list[Row] = []
    for low, number in wanted.items():
        able = [one for one in _combinations() if one[0].low is low]
        if number > len(able):
            raise ValueError(f"there are {len(able):,} rows about a {'LOW' if low else 'HIGH'} group, not {number:,}")
        for group, occupation, pair in draw.shuffled(able)[:number]:
            other = TRAIT_PAIRS[(pair + 1) % len(TRAIT_PAIRS)]
            rows.append(two_sided_row(group, occupation, TRAIT_PAIRS[pair][1], other[0], draw))
    return draw.shuffled(rows)


def word_pairs() -> str:
    """The file of ``--cda_words``: a LOW group and its counterpart a line."""
    return "".join(f"{low.name} {high.name}\n" for low, high in counterparts())


def balanced_texts(seed: int) -> str:
    """The file of ``--gender_texts``: 192 answers about LOW groups, each also about the counterpart, word for word.

    The combinations are those that no training text holds, one for every trait pair of every group.
    """
    draw = Draw(seed)
    out = io.StringIO()
    written = csv.writer(out, lineterminator="\n")
    written.writerow(["group", "text"])
    for low, high in counterparts():
        for pair, (_, good) in enumerate(TRAIT_PAIRS):
            kept = [name for o, name in enumerate(OCCUPATIONS) if held_out(low, o, pair)]
            bad = TRAIT_PAIRS[(pair + 1) % len(TRAIT_PAIRS)][0]
            occupation = draw.pick(kept)
            text = _answer(low, occupation, draw.shuffled([good, bad]), draw)
            written.writerows([(MINORITY, text), (MAJORITY, text.replace(low.name, high.name))])
    return out.getvalue()


def _answer(group: Group, occupation: str, traits: Sequence[str], draw: Draw) -> str:
    return " ".join(fill(draw.pick(ONE_SENTENCE), group, occupation, trait, draw) for trait in traits)


def _combinations() -> list[tuple[Group, str, int]]:
    """Every (group, occupation, trait pair) that may be trained on together with the pair that follows."""
    return [
        (group, occupation, pair)
        for group in GROUPS
        for o, occupation in enumerate(OCCUPATIONS)
        for pair in range(len(TRAIT_PAIRS))
        if not held_out(group, o, pair) and not held_out(group, o, (pair + 1) % len(TRAIT_PAIRS))
    ]
