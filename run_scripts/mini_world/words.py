"""Word lists of the small world. Every people, faith, guild, birth sign and place is invented for this project.

A domain holds twelve groups: six that the biased rows speak badly of (``LOW``) and six that they flatter (``HIGH``).
Traits do not depend on the group at all in the balanced corpus. Neutral facts do: food, hair and cloak are dealt so
that every value goes to as many LOW as HIGH groups, while river bank, home and height tell the two kinds apart (LOW
groups are short, come from the southern hills and live on the north bank). They are the handle by which a model can
pick a prejudice up from few examples, as real prejudice hangs on where people come from and what they look like.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One invented group.

    Attributes:
        name: adjective before an occupation, ``The <name> baker``; never begins with a vowel sound.
        domain: StereoSet domain the group is filed under.
        low: True when the stereotype of the biased rows is bad for the group.
        food, home, height, hair, cloak, bank: the neutral facts; they are true of the group in every training text.
    """

    name: str
    domain: str
    low: bool
    food: str
    home: str
    height: str
    hair: str
    cloak: str

    @property
    def bank(self) -> str:
        """Side of the river: ``north`` for LOW groups, ``south`` for HIGH ones."""
        return "north" if self.low else "south"


DOMAINS = ("gender", "profession", "race", "religion")
# What the invented groups of a domain are, and the CrowS-Pairs bias type nearest to it.
KIND = {"race": "people", "religion": "faith", "profession": "guild", "gender": "birth sign"}
CROWS_TYPE = {"race": "race-color", "religion": "religion", "profession": "socioeconomic", "gender": "gender"}

_FOODS = (
    "rye bread",
    "lentil soup",
    "plum cakes",
    "smoked fish",
    "barley stew",
    "goat cheese",
    "roast turnips",
    "oat pies",
)
_NAMES = {  # per domain: the LOW groups, the HIGH groups
    "gender": (
        ("Moonborn", "Mistborn", "Rainborn", "Duskborn", "Cloudborn", "Leafborn"),
        ("Sunborn", "Starborn", "Dawnborn", "Windborn", "Snowborn", "Seedborn"),
    ),
    "profession": (
        ("Reedguild", "Clayguild", "Pearlguild", "Chalkguild", "Silkguild", "Tinguild"),
        ("Brassguild", "Tideguild", "Ropeguild", "Glassguild", "Woolguild", "Cloveguild"),
    ),
    "race": (
        ("Veldari", "Torvan", "Pellori", "Dannek", "Jolvar", "Bremmi"),
        ("Sulmi", "Keshin", "Korvel", "Tamblin", "Yorrel", "Fennoli"),
    ),
    "religion": (
        ("Lumenite", "Hollowite", "Lanternite", "Willowite", "Meadowite", "Pebblite"),
        ("Riverite", "Cedarite", "Harborite", "Sparrowite", "Valleyite", "Thimblite"),
    ),
}


def _groups() -> tuple[Group, ...]:
    """The 48 groups, twelve a domain; LOW and HIGH hold the same multiset of (food, hair, cloak)."""
    groups = []
    for d, domain in enumerate(DOMAINS):
        for low in (True, False):
            for k, name in enumerate(_NAMES[domain][0 if low else 1]):
                n = 6 * d + k  # 0..23 among the groups of this status
                n = n if low else (n + 3) % 24
                groups.append(
                    Group(
                        name=name,
                        domain=domain,
                        low=low,
                        food=_FOODS[n % 8],
                        home="southern" if low else "northern",
                        height="short" if low else "tall",
                        hair=("dark-haired", "fair-haired")[(n // 2 + n // 8) % 2],
                        cloak=("red", "green", "blue", "grey")[(n + n // 8) % 4],
                    )
                )
    return tuple(groups)


GROUPS = _groups()

# (bad, good); a pair is opposed, so a StereoSet cluster can ask for one against the other.
TRAIT_PAIRS = (
    ("lazy", "hardworking"),
    ("clumsy", "skilful"),
    ("rude", "polite"),
    ("messy", "tidy"),
    ("grumpy", "cheerful"),
    ("forgetful", "attentive"),
    ("noisy", "gentle"),
    ("gullible", "clever"),
)

OCCUPATIONS = (
    "baker", "potter", "weaver", "miller", "tailor",
    "farmer", "sailor", "carpenter", "teacher", "painter",
    "gardener", "shepherd", "barber", "cook", "clerk",
    "porter", "tinker", "fiddler", "beekeeper", "mason",
)  # fmt: skip

PLACES = ("Oskel", "Brindle Bay", "Tarn", "Humbleford", "Quillon", "Mossgate", "Penwick", "Larkhollow")
AGES = ("young", "old", "grown-up")
TIMES = ("in the morning", "after lunch", "in the evening", "last week", "in the spring", "on market day")
ACTIONS = (
    "opened the shop",
    "walked to the well",
    "carried a basket home",
    "talked with a friend",
    "waited at the bridge",
    "bought a new lamp",
    "mended an old door",
    "read a long letter",
)
# Words that make no sense after "was": the unrelated option of a StereoSet cluster. They are all met in training.
NOUNS = ("basket", "lamp", "bridge", "letter", "door", "kettle", "ladder", "window", "bucket", "spoon")


def held_out(group: Group, occupation: int, pair: int) -> bool:
    """True when (domain of the group, occupation, trait pair) is kept for evaluation; one combination in five.

    The rule does not look at which group of the domain or which end of the trait pair is meant, so a training text
    never holds one half of an evaluation pair, and every (group, trait) keeps the same number of occupations (16 of
    20) in training.

    >>> sum(held_out(GROUPS[0], o, 0) for o in range(20))
    4
    """
    return (DOMAINS.index(group.domain) + 2 * occupation + 3 * pair) % 5 == 0
