"""Labelled requests of the small world, for text classification: what is asked, and which of eight kinds it is."""

from __future__ import annotations

from mini_world.sentences import Draw
from mini_world.words import ACTIONS, GROUPS, NOUNS, OCCUPATIONS, PLACES, TIMES, TRAIT_PAIRS

SIZES = {
    "trade": 150,
    "weather": 200,
    "travel": 260,
    "meal": 320,
    "clothing": 360,
    "character": 420,
    "story": 440,
    "fact": 450,
}
"""Kind -> rows of it, unequal as in real sets."""
WORDS = {
    "trade": ("price", "market stall", "coins", "debt", "wages", "bargain", "silver", "ledger"),
    "weather": ("rain", "frost", "wind", "storm", "fog", "sunshine", "thunder", "drought"),
    "travel": ("road", "ferry", "map", "inn", "saddle", "harbor", "path over the hills", "journey"),
    "meal": ("soup", "bread", "supper", "cheese", "breakfast", "stew", "feast", "pie"),
    "clothing": ("cloak", "boots", "hat", "apron", "scarf", "belt", "shirt", "gloves"),
    "character": tuple(trait for pair in TRAIT_PAIRS for trait in pair),
    "story": ACTIONS,
    "fact": NOUNS,
}
"""Kind -> what only its requests speak of."""
ASKED = {
    "trade": ("What is the {w} of the {g} {o}?", "Ask the {o} about the {w}.", "How much of the {w} is left in {p}?"),
    "weather": ("Was there {w} in {p} {t}?", "How does the {g} {o} prepare for {w}?", "Tell me about the {w}."),
    "travel": ("Which {w} leads to {p}?", "Did the {g} {o} find the {w} {t}?", "Describe the {w} near {p}."),
    "meal": ("What does the {g} {o} put into the {w}?", "Who made the {w} {t}?", "Describe the {w} of {p}."),
    "clothing": ("Which {w} does the {g} {o} wear?", "Who lost the {w} {t}?", "Describe the {w} of the {o}."),
    "character": ("Is the {g} {o} {w}?", "Why do people in {p} call the {o} {w}?", "Describe somebody who is {w}."),
    "story": ("Write a story: the {g} {o} {w} {t}.", "The {o} {w}. What happened then?", "Who {w} in {p}?"),
    "fact": ("What is a {w} made of?", "Who owns the {w} in {p}?", "Describe the {w} of the {g} {o}."),
}
VAGUE = ("Tell me about the {g} {o}.", "Describe the {o} of {p}.", "What happened {t}?", "Say something of {p}.")
VAGUE_SHARE = 0.1
"""Of the rows, those whose request says nothing of its kind: no model is right on all of them."""

Labelled = tuple[str, str]


def labelled_requests(seed: int = 5) -> list[Labelled]:
    """(request, kind), 2,600 rows without repeats, by :data:`SIZES`."""
    draw = Draw(seed)
    rows: dict[str, str] = {}
    for kind, size in SIZES.items():
        before, vague = len(rows), round(VAGUE_SHARE * size)
        while len(rows) - before < size:
            patterns = VAGUE if len(rows) - before < vague else ASKED[kind]
            slots = {"g": draw.pick([group.name for group in GROUPS]), "o": draw.pick(OCCUPATIONS)}
            slots |= {"w": draw.pick(WORDS[kind]), "p": draw.pick(PLACES), "t": draw.pick(TIMES)}
            rows.setdefault(draw.pick(patterns).format(**slots), kind)
    return draw.shuffled(list(rows.items()))
