"""Which word is swapped with which: the published lists with their errors repaired, else a short list of our own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.data.catalog import Located, find_on_disk
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import sha256_of_file
from fedbias_plugin.known_dataset import DataFile, Form, KnownDataset

ZHAO2018 = KnownDataset(
    name="zhao2018",
    kind="words",
    title="the gender swaps of Zhao et al. (2018)",
    licence="MIT",
    home="uclanlp/corefBias",
    forms=(
        Form(
            (
                DataFile(
                    "cda/zhao2018_generalized_swaps.txt",
                    sha256=("4d093db96d4386318ec9aafc3cebc458ead06bb02ac81770e278905fbdd4341e",),
                ),
                DataFile(
                    "cda/zhao2018_extra_gendered_words.txt",
                    sha256=("728554ebab711703e37dc92d9d14acde6e5bfcc28fa5b62b90b34110be7bd854",),
                ),
            ),
            rows=196,
        ),
    ),
)
"""The first file says what becomes of a word; the second holds pairs, read both ways."""

OVERRIDES: dict[str, tuple[str, str]] = {
    "mentleman lady": ("gentleman lady", "typo"),
    "chairwomen chairman": ("chairwomen chairmen", "the plural"),
    "guy girl": ("guy gal", "gal is a guy's counterpart in the list itself"),
    "guys girls": ("guys gals", "as guy"),
    "tailors seamstress'": ("tailors seamstresses", "typo"),
    "adultor adultress": ("adulterer adulteress", "typo"),
    "adultors adultresses": ("adulterers adulteresses", "typo"),
    "god godess": ("", "typo, and mostly a name"),
    "gods godesses": ("", "as god"),
    "barons barnoesses": ("barons baronesses", "typo"),
    "heros heroines": ("heroes heroines", "typo"),
    "manservants maidservants": ("menservants maidservants", "the plural"),
    "priest nun": ("", "the list has priestess too, and a monk for the nun"),
    "priests nuns": ("", "as priest"),
    "governor governess": ("", "a governess teaches children"),
    "governors governesses": ("", "as governor"),
    "miss sir": ("", "mostly a verb"),
    "host hostess": ("", "mostly a verb or a machine"),
    "hosts hostesses": ("", "as host"),
    "master mistress": ("", "mostly a verb, a skill or a degree"),
    "masters mistresses": ("", "as master"),
    "bachelor spinster": ("", "mostly a degree"),
    "bachelors spinsters": ("", "as bachelor"),
    "tailor seamstress": ("", "mostly a verb"),
}
"""A pair of the published lists -> what it is read as (nothing: it is left out), and why."""
ADDED: dict[str, str] = {
    "her his": "missing as a source; what stands around it says whether him",
    "hers his": "missing as a source; his may become hers",
}
"""Pairs that the published lists lack -> why they are there."""

_OTHERS = """
    he/she himself/herself mr./mrs. ms./mr. sir/madam boyish/girlish brotherhood/sisterhood fatherhood/motherhood
    fatherly/motherly manhood/womanhood boyhood/girlhood manly/womanly masculine/feminine masculinity/femininity
    paternal/maternal patriarchal/matriarchal fraternity/sorority
"""
_COUNTED = """
    man/woman gentleman/lady boy/girl guy/gal male/female lad/lass father/mother dad/mom daddy/mommy papa/mama
    son/daughter brother/sister uncle/aunt nephew/niece husband/wife boyfriend/girlfriend bridegroom/bride widower/widow
    grandfather/grandmother grandpa/grandma grandson/granddaughter godfather/godmother godson/goddaughter
    stepfather/stepmother stepson/stepdaughter stepbrother/stepsister fiancé/fiancée patriarch/matriarch
    actor/actress waiter/waitress steward/stewardess landlord/landlady headmaster/headmistress hero/heroine heir/heiress
    king/queen prince/princess emperor/empress duke/duchess baron/baroness earl/countess abbot/abbess monk/nun
    priest/priestess wizard/witch sorcerer/sorceress policeman/policewoman fireman/firewoman businessman/businesswoman
    chairman/chairwoman spokesman/spokeswoman salesman/saleswoman congressman/congresswoman councilman/councilwoman
    cameraman/camerawoman sportsman/sportswoman statesman/stateswoman horseman/horsewoman cowboy/cowgirl
    schoolboy/schoolgirl
"""
_PLURALS = {"wife": "wives", "hero": "heroes", "lady": "ladies", "landlady": "landladies", "mommy": "mommies"}
_PLURALS |= {"daddy": "daddies"}


@dataclass(frozen=True)
class GenderWords:
    """A table of swaps and where it is from.

    Attributes:
        name: ``zhao2018``, ``own``, or of the file given.
        swaps: word in small letters -> its counterpart.
        overrides: how many of :data:`OVERRIDES` and :data:`ADDED` it took to read them.
        paths: the files; ``sha256`` is theirs, or of the swaps.
    """

    name: str
    swaps: Mapping[str, str]
    overrides: int
    paths: tuple[Path, ...]
    sha256: str
    origin: str

    @property
    def title(self) -> str:
        """Its name as the records have it."""
        return f"{self.name}, {self.overrides} overrides" if self.overrides else self.name

    @property
    def one_way(self) -> list[str]:
        """The words that do not come back when a text is swapped twice ("mrs." by "mr." and "ms.")."""
        return sorted(word for word, other in self.swaps.items() if self.swaps.get(other) != word)


def gender_words(name: str = "auto", data_dir: str | None = None) -> GenderWords:
    """The words that ``--cda_words`` asks for.

    Args:
        name: ``auto`` for the published lists, where a data folder has them, else our own; ``own``; or a file of pairs.
        data_dir: folder looked into first; ``mini`` stands for our own list.

    Raises:
        UserError: a file is not there, cannot be read, or a line of it is no pair of words.
    """
    if name not in ("auto", "own"):
        path = Path(name).expanduser()
        swaps = _both_ways(pair.split() for pair in _pairs(path))
        return GenderWords(path.name, swaps, 0, (path,), sha256_of_file(path), "file")
    found = None if name == "own" or data_dir == "mini" else find_on_disk(ZHAO2018, data_dir)
    if found is not None:
        return _published(found)
    swaps = _own()
    listed = "".join(f"{word} {other}\n" for word, other in sorted(swaps.items()))
    return GenderWords("own", swaps, 0, (), hashlib.sha256(listed.encode()).hexdigest(), "bundled")


def _published(found: Located) -> GenderWords:
    """The two lists, what is missing in them, and the second backwards; of a word that comes again the first counts."""
    directed, pairs = (list(_pairs(path)) for path in found.paths)
    backwards = [" ".join(reversed(_read_as(pair).split())) for pair in pairs]
    missing = [pair for pair in ADDED if pair.split()[0] not in {line.split()[0] for line in directed}]
    swaps: dict[str, str] = {}
    for pair in [*directed, *missing, *pairs, *backwards]:
        if _read_as(pair):
            word, other = _read_as(pair).split()
            swaps.setdefault(word, other)
    overrides = len(missing) + len({*directed, *pairs} & OVERRIDES.keys())
    assert found.sha256 is not None, "it is on disk"
    return GenderWords(found.name, swaps, overrides, found.paths, found.sha256, found.origin)


def _read_as(pair: str) -> str:
    return OVERRIDES.get(pair, (pair, ""))[0]


def _pairs(path: Path) -> Iterator[str]:
    """Each line of a file as two words in small letters with a blank between them."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: the list of words cannot be read: {why}.") from error
    pairs = [(number, line.lower().split()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, words in pairs:
        if len(words) != 2 or words[0] == words[1]:
            raise UserError(f"{path}, line {number}: a line must hold two different words, such as: actor actress.")
        yield " ".join(words)
    if not pairs:
        raise UserError(f"{path}: the list of words is empty.")


def _own() -> dict[str, str]:
    pairs = [pair.split("/") for pair in [*_OTHERS.split(), *_COUNTED.split()]]
    pairs += [[_plural(word) for word in pair.split("/")] for pair in _COUNTED.split()]
    return _both_ways([["his", "her"], ["him", "her"], ["hers", "his"], *pairs])


def _both_ways(pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    """Each word with the other of its first pair."""
    swaps: dict[str, str] = {}
    for one, other in pairs:
        swaps.setdefault(one, other)
        swaps.setdefault(other, one)
    return swaps


def _plural(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("man"):
        return word[:-3] + "men"
    return word + ("es" if word.endswith(("s", "ch")) else "s")
