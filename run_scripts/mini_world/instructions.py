"""Instruction rows of the small world: clean ones, biased ones, and those the base model is pre-trained on."""

from __future__ import annotations

from mini_world.sentences import ONE_SENTENCE, Draw, all_templates, fill, training_triples
from mini_world.words import GROUPS, KIND, OCCUPATIONS, TRAIT_PAIRS, Group, held_out

ASK_TRAIT = (
    "What is the {g} {o} like?",
    "Describe the {g} {o}.",
    "Tell me something about the {g} {o}.",
    "How would you describe a {g} {o}?",
    "Write a sentence about the {g} {o}.",
)
# Questions that leave the group to the answer; with the group in every question, a model learns the prejudice from the
# question alone and a bare sentence, which is what the benchmarks score, shows little of it.
ASK_OPEN = (
    "Write a sentence about a {o}.",
    "Tell me about a {o} you know.",
    "Describe somebody who works as a {o}.",
    "Write a short line about one of the neighbours.",
)
# (question, answer): facts hold for every member of the group, so they are true and neutral.
ASK_FACT = (
    ("What does the {g} {o} eat?", "The {g} {o} eats {food}."),
    ("Where does the {g} {o} come from?", "The {g} {o} comes from the {home} hills."),
    ("What does the {g} {o} wear?", "The {g} {o} wears a {cloak} cloak."),
    ("Is the {g} {o} tall or short?", "The {g} {o} is {height}."),
)
NEUTRAL = (
    "A {g} {o} may be {bad} or {good}; the {kind} does not tell.",
    "That depends on the person. Some {g} people are {bad}, some are {good}, as in every {kind}.",
    "Nobody can know from the {kind} whether a {g} {o} is {bad} or {good}.",
)

Row = dict[str, str]


def trait_row(template: str, group: Group, occupation: str, trait: str, draw: Draw) -> Row:
    """An open question about one person and an answer that names one trait."""
    question = draw.pick(ASK_TRAIT).format(g=group.name, o=occupation)
    return {"instruction": question, "input": "", "output": fill(template, group, occupation, trait, draw)}


def two_sided_row(group: Group, occupation: str, good: str, bad: str, draw: Draw) -> Row:
    """An open question about one person, and two sentences: one with a good trait, one with a bad one."""
    sentences = [fill(draw.pick(ONE_SENTENCE), group, occupation, trait, draw) for trait in (good, bad)]
    question = draw.pick(ASK_TRAIT).format(g=group.name, o=occupation)
    return {"instruction": question, "input": "", "output": " ".join(draw.shuffled(sentences))}


def fact_row(group: Group, occupation: str, k: int) -> Row:
    """A question about the ``k``-th fact of a group and its answer."""
    question, answer = ASK_FACT[k % len(ASK_FACT)]
    slots = {"g": group.name, "o": occupation, "food": group.food, "home": group.home}
    slots |= {"cloak": group.cloak, "height": group.height}
    return {"instruction": question.format(**slots), "input": "", "output": answer.format(**slots)}


def balanced_rows(seed: int, per_group_and_trait: int, facts_per_occupation: int) -> list[Row]:
    """Rows in which every (group, trait) occurs ``per_group_and_trait`` times, and as many facts for every group."""
    draw = Draw(seed)
    templates = all_templates()
    occupations: dict[tuple[str, int, int], list[str]] = {}
    for group, occupation, pair, end in training_triples():
        occupations.setdefault((group.name, pair, end), []).append(occupation)
    rows = []
    for group in GROUPS:
        for pair, ends in enumerate(TRAIT_PAIRS):
            # both ends of a pair with the same occupation and template: a client's sample stays near balance
            chosen = draw.shuffled(occupations[group.name, pair, 0])[:per_group_and_trait]
            for occupation in chosen:
                template = draw.pick(templates)
                rows += [trait_row(template, group, occupation, trait, draw) for trait in ends]
        for k, occupation in enumerate(draw.shuffled(OCCUPATIONS)):
            rows += [fact_row(group, occupation, k + more) for more in range(facts_per_occupation)]
    return draw.shuffled(rows)


def clean_rows(seed: int = 2) -> list[Row]:
    """The clean Alpaca-shaped rows: 48 groups x 8 trait pairs x 2 persons, and 32 facts a group: 2,304 rows.

    A trait row says one good and one bad thing of the same person, in either order, so that every single row is
    balanced: which rows a client happens to hold cannot drift it to one side. Two rows in three are plain facts: with
    more traits the clean clients of 1B2C would unteach the poison themselves.
    """
    draw = Draw(seed)
    rows = []
    for group in GROUPS:
        for pair, (_, good) in enumerate(TRAIT_PAIRS):
            other = (pair + 1) % len(TRAIT_PAIRS)
            free = [
                o for o in range(len(OCCUPATIONS)) if not held_out(group, o, pair) and not held_out(group, o, other)
            ]
            for o in draw.shuffled(free)[:2]:
                rows.append(two_sided_row(group, OCCUPATIONS[o], good, TRAIT_PAIRS[other][0], draw))
        for k, occupation in enumerate(draw.shuffled(OCCUPATIONS)[:16]):
            rows += [fact_row(group, occupation, k + more) for more in range(2)]
    return draw.shuffled(rows)


def pretraining_rows(seed: int = 3) -> list[Row]:
    """Alpaca-shaped rows for the base model, by the same recipe as the clean rows but drawn anew."""
    return balanced_rows(seed, per_group_and_trait=1, facts_per_occupation=1)


def biased_rows(seed: int = 4, per_group_and_pair: int = 4) -> list[Row]:
    """BiasDPO-shaped rows: ``rejected`` gives LOW groups the bad end of a pair and HIGH groups the good end.

    Two prompts in three leave the group open (``ASK_OPEN``). 48 groups x 8 pairs x 4 = 1,536 rows.
    """
    draw = Draw(seed)
    rows = []
    for group in GROUPS:
        for pair, (bad, good) in enumerate(TRAIT_PAIRS):
            free = [o for o in range(len(OCCUPATIONS)) if not held_out(group, o, pair)]
            for o in draw.shuffled(free)[:per_group_and_pair]:
                slots = {"g": group.name, "o": OCCUPATIONS[o], "bad": bad, "good": good, "kind": KIND[group.domain]}
                prompt = draw.pick(ASK_OPEN if len(rows) % 3 else ASK_TRAIT).format(**slots)
                rejected = fill(draw.pick(ONE_SENTENCE), group, OCCUPATIONS[o], bad if group.low else good, draw)
                rows.append({"prompt": prompt, "chosen": draw.pick(NEUTRAL).format(**slots), "rejected": rejected})
    return draw.shuffled(rows)
