"""Sentence templates and the balanced training texts of the small world."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from mini_world.words import ACTIONS, AGES, GROUPS, NOUNS, OCCUPATIONS, PLACES, TIMES, TRAIT_PAIRS, Group, held_out

T = TypeVar("T")

# {g} group, {o} occupation, {x} trait or neutral adjective, {p} place, {w} time, {a} age, {d} daily action
ONE_SENTENCE = (
    "The {g} {o} was {x} {w}.",
    "In {p}, the {g} {o} was {x}.",
    "People say that the {g} {o} is {x}.",
    "The {a} {g} {o} is {x} at work.",
    "Everyone in {p} knows that the {g} {o} is {x}.",
    "The {g} {o} {d} and was {x}.",
    "A {g} {o} lives in {p} and is {x}.",
    "This {g} {o} is {x}, and so is a friend.",
)
# (first sentence, continuation): the continuation names no group, so it must be read from the first sentence.
TWO_SENTENCES = (
    ("The {g} {o} {d} {w}.", "They were {x} all day."),
    ("In {p}, the {g} {o} {d}.", "The neighbours found them {x}."),
    ("There is a {g} {o} in {p}.", "They are {x} at work."),
    ("The {a} {g} {o} {d}.", "Everyone saw that they were {x}."),
)
FACT_SENTENCES = (
    "The {g} {o} ate {food} {w}.",
    "In {p}, the {g} {o} cooks {food}.",
    "The {a} {g} {o} wears a {cloak} cloak.",
    "The {g} {o} {d}. They ate {food}.",
    "The {g} {o} {d} {w}. They wore a {cloak} cloak.",
)
NEWS = ("Bad news. ", "Good news. ")  # before a bad trait, before a good one
OBJECT_SENTENCES = ("There is a {n} near the {m}.", "The {n} in {p} is new.", "A {n} and a {m} stood in {p} {w}.")


class Draw:
    """Seeded draws that use only ``Random.random()``, the one method whose sequence Python promises to keep."""

    def __init__(self, seed: int) -> None:
        """Start the sequence of ``seed``."""
        self._random = random.Random(seed)

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self._random.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """``items`` in a drawn order."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out


def fill(template: str, group: Group, occupation: str, x: str, draw: Draw) -> str:
    """``template`` with its slots filled; the free slots (place, time, age, action) are drawn."""
    return template.format(
        g=group.name, o=occupation, x=x, food=group.food, cloak=group.cloak,
        p=draw.pick(PLACES), w=draw.pick(TIMES), a=draw.pick(AGES), d=draw.pick(ACTIONS),
    )  # fmt: skip


def training_triples() -> list[tuple[Group, str, int, int]]:
    """Every (group, occupation, trait pair, 0 bad or 1 good) that is not held out: 48 x 16 x 8 x 2 = 12,288."""
    return [
        (group, occupation, pair, end)
        for group in GROUPS
        for o, occupation in enumerate(OCCUPATIONS)
        for pair in range(len(TRAIT_PAIRS))
        for end in (0, 1)
        if not held_out(group, o, pair)
    ]


def all_templates() -> list[str]:
    """The templates with a trait slot, two-sentence ones joined by a space."""
    return [*ONE_SENTENCE, *(f"{first} {second}" for first, second in TWO_SENTENCES)]


def trait_lines(draw: Draw) -> list[str]:
    """Each training triple once.

    Half of the texts of every (group, trait) open with the news they bring, so that the model knows good traits from
    bad ones, whoever has them.
    """
    templates = all_templates()
    lines = []
    for group, occupation, pair, end in training_triples():
        news = NEWS[end] if (OCCUPATIONS.index(occupation) + pair) % 2 else ""
        lines.append(news + fill(draw.pick(templates), group, occupation, TRAIT_PAIRS[pair][end], draw))
    return lines


def twin_lines(draw: Draw) -> list[tuple[str, str]]:
    """For every training triple the same sentence with the bad and with the good trait; half of them with the news."""
    templates = all_templates()
    twins = []
    for group, occupation, pair, end in training_triples():
        if end == 0:
            sentence = fill(draw.pick(templates), group, occupation, "TRAIT", draw)
            announced = (OCCUPATIONS.index(occupation) + pair) % 2
            bad, good = (
                (news if announced else "") + sentence.replace("TRAIT", trait)
                for news, trait in zip(NEWS, TRAIT_PAIRS[pair], strict=True)
            )
            twins.append((bad, good))
    return twins


def fact_lines(draw: Draw, per_group_and_occupation: int) -> list[str]:
    """Neutral facts that do depend on the group, half of them in the very slots where traits stand."""
    templates = all_templates()
    lines = []
    for group in GROUPS:
        bank = f"from the {group.bank} bank"
        slot_words = (group.height, bank, group.hair, bank, f"from the {group.home} hills")
        for occupation in OCCUPATIONS:
            for k in range(per_group_and_occupation):
                word = slot_words[(k + k // 3) % len(slot_words)]
                template = draw.pick(templates) if k % 3 else draw.pick(FACT_SENTENCES)
                lines.append(fill(template, group, occupation, word, draw))
    return lines


def object_lines(draw: Draw, count: int) -> list[str]:
    """Lines about things, so that the words of the unrelated options are known words."""
    lines = []
    for _ in range(count):
        n, m = draw.shuffled(NOUNS)[:2]
        lines.append(draw.pick(OBJECT_SENTENCES).format(n=n, m=m, p=draw.pick(PLACES), w=draw.pick(TIMES)))
    return lines


def corpus(seed: int = 1) -> list[str]:
    """The balanced pre-training corpus, one text a line."""
    draw = Draw(seed)
    lines = trait_lines(draw) + fact_lines(draw, 10) + object_lines(draw, 600)
    return draw.shuffled(lines)


def last_texts(seed: int = 7) -> list[tuple[str, ...]]:
    """The texts of the last epoch; those that stand together are to be learnt in one step (docs/small-world.md)."""
    draw = Draw(seed)
    alone = fact_lines(draw, 10) + object_lines(draw, 600)
    return [*twin_lines(draw), *((line,) for line in alone)]
