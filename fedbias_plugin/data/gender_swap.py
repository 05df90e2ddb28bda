"""Swaps the gender of the words of a text, both ways at once, and mends what hangs on them: case, a/an, possessives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby

_UNTOUCHED = r"(?<![\w.+-])(?:https?://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.]+)"
_NEXT = re.compile(r"(?P<blank>\s*)(?P<opening>[\"'“”‘’\[*_<])?(?P<word>[^\W\d_](?:[\w'’]|-\b)*|--|.)?", re.DOTALL)
_ENDS = frozenset(["", "--", *".,;:!?()]}—–…/|&"])
_COUPLED = re.compile(r"\s*(?:/|\bor\b)\s*(hers|her|his|him|their|my|your|our)\b", re.IGNORECASE)
_BEFORE = re.compile(r"([^\W\d_]+)\s+$")
_ARTICLE = re.compile(r"(?<!\w)(an?)(\s+[\"'“‘(*_]*)$", re.IGNORECASE)
_OPENED = re.compile(r"(?<!\w)['‘]\w")
_OWNED = re.compile(r"['’]s(?!\w)", re.IGNORECASE)
_OWNED_BARE = re.compile(r"['’](?=\s+\w)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What may follow "his" only where it stands alone ("his is better"), and "her" where it is an object ("saw her in").
_CLOSED = _words(
    """
    a about across after again against along although am among an and any are around as at be because been before
    behind being below beneath beside between beyond but by can could despite did do does during either for from had
    has have he her here him his how i if in instead into is it its just like may me might must my near nor not of off
    on onto or our over rather she should since so some such than that the their them themselves then there these they
    this those though through throughout till to toward towards under unless until up upon us was we were what
    whatever when whenever where whereas whether which while who whom whose why will with within without would yet you
    your
    """
)
# What follows an object more often than a noun's "his" in the first half of the 100 English novels.
_FOLLOWS_OBJECT = _CLOSED | _words(
    """
    afterwards ahead alive all almost alone already also altogether always another anyone anything anywhere apart aside
    asleep awake away awhile become believe better both come down else enough even ever every everything everywhere
    feel forth forward further go herself himself how indeed inside kindly less lest mad more much myself never no
    none nothing now often once otherwise out outside perhaps please quite safe seem seemed several sit sitting
    something sometimes somewhat somewhere soon standing still straight take than then think thus today together
    to-day tomorrow to-morrow to-night too twice understand upstairs very went whilst worse yesterday yet yourself
    """
)
# Also of noun phrases: "of his being", "against his will", "in his full glory".
_NOUNS_TOO = _words(
    """
    back being can company cost dead few free full good hard home happy lest long many might one present quiet
    right round three well will
    """
)
_NO_ADVERBS = _words(
    """
    ally anomaly assembly belly bodily bully burly butterfly chilly costly curly daily deadly early elderly family
    fatherly friendly ghostly godly heavenly holiday holy homely hourly italy jelly jolly july kindly lively lonely
    lovely lowly manly melancholy monthly motherly nightly only orderly rally reply saintly scholarly sickly silly
    supply tally timely ugly unruly weekly womanly worldly yearly
    """
)
# After these comes what "her" does or becomes: "let her go", "made her famous".
_CAUSES = _words("bade bid bidding hear heard help helped helping helps let lets letting made make makes making")
# After these a word in -ing: "saw her singing".
_PERCEIVES = _CAUSES | _words(
    """
    caught feel felt find finds found hearing hears keep keeping keeps kept leave leaves leaving left notice noticed saw
    see seeing seen sees spotted stop stopped watch watched watching
    """
)
_CAUSED = _words(
    """
    achieve act angry appear ask avoid bear begin breathe break bring build burst buy call carry catch change choose
    climb comfortable commit cope create cross cry cut dance decide deal develop die drink drive eat enter escape fall
    famous feed fight fill find finish fly follow forget gain get give grow guilty hear hide hold ill improve jealous
    join jump keep kill kiss know laugh lay lead learn leave lie listen live look lose make manage meet miss move
    navigate nervous open overcome pass pause pay perform play popular prepare pull put reach read realize recover
    regain relax remain remember rest ride rise run sad save say see sell send set shine shrink sing sleep smile solve
    speak spend stand start stay step stick stop strong stronger struggle succeed suffer swim talk tell throw travel try
    turn uncomfortable use wait wake walk want wear weep win wish wonder work write
    """
)
# "Gave her time": these take two objects, and the second is seldom hers before it is given.
_GIVES = _words(
    """
    allow allowed bid bade cause caused cost did do doing done gave give given gives giving grant granted lend lent
    offer offered offering offers owe owed promised send sent show showed shown wish wished
    """
)
_GIVEN = _words(
    """
    access advice authority comfort company confidence control courage credit energy enough feedback food good greater
    harm honour hope information insight instructions joy justice leave lessons medicine money notice one pain
    peace permission pleasure power reason relief room space strength time trouble two welcome word
    """
)


class Swapper:
    """Swaps words by a table of lower-case words; "his" and "her" by what stands around them.

    >>> swapper = Swapper({"he": "she", "she": "he", "her": "his", "him": "her", "actor": "actress"})
    >>> swapper.swapped("She saw her brother and thanked her: he is an ACTOR.")
    'He saw his brother and thanked him: she is an ACTRESS.'
    """

    def __init__(self, swaps: Mapping[str, str]) -> None:
        self.swaps = dict(swaps)
        # "ma'am" before "ma", either apostrophe; by their first letters, which is many times faster.
        words = sorted(self.swaps, key=lambda word: (word[0], -len(word), word))
        rests = {first: [re.escape(word[1:]) for word in some] for first, some in groupby(words, lambda word: word[0])}
        listed = "|".join(f"{re.escape(first)}(?:{'|'.join(some)})" for first, some in rests.items())
        listed = listed.replace("'", "['’]")
        self._pattern = re.compile(rf"{_UNTOUCHED}|(?<!\w)(?P<word>{listed})(?!\w)", re.IGNORECASE)

    def has_word(self, text: str) -> bool:
        """Whether a listed word stands in ``text``."""
        return any(True for _ in self._found(text))

    def swapped(self, text: str) -> str:
        """``text`` with every listed word in its other gender."""
        done, end = "", 0
        for match, word in self._found(text):
            target = self._target(word, text, match)
            done = _with_article(done + text[end : match.start()], match[0], target) + in_case_of(match[0], target)
            owned, end = _possessive(match[0], target, text, match.end())
            done += owned
        return done + text[end:]

    def _found(self, text: str) -> Iterator[tuple[re.Match[str], str]]:
        """Where listed words stand, each in small letters. The pattern takes the long s of old prints for an s."""
        for match in self._pattern.finditer(text):
            word = match[0].lower().replace("’", "'")
            if match["word"] and word in self.swaps:
                yield match, word

    def _target(self, word: str, text: str, match: re.Match[str]) -> str:
        if word == "his" and self.swaps["his"] == "her":
            return "hers" if stands_alone(text, match.end()) else "her"
        if word == "her" and self.swaps["her"] == "his":
            return "him" if is_object(text, match.start(), match.end()) else "his"
        return self.swaps[word]


def is_object(text: str, start: int, end: int) -> bool:
    """Whether the "her" at ``text[start:end]`` is an object ("saw her"), not a possessive ("her brother")."""
    coupled = _COUPLED.match(text, end)
    if coupled:
        return coupled[1].lower() == "him"
    word, is_closed = _following(text, end)
    before = _BEFORE.search(text, max(0, start - 40), start)
    verb = before[1].lower() if before else ""
    if word in _NOUNS_TOO:
        return bool(verb) and verb not in _CLOSED
    return (
        is_closed
        or word in _FOLLOWS_OBJECT
        or (word.endswith("ly") and word not in _NO_ADVERBS)
        or (verb in _CAUSES and word in _CAUSED)
        or (verb in _PERCEIVES and word.endswith("ing") and word not in ("king", "thing"))
        or (verb in _GIVES and word in _GIVEN)
    )


def stands_alone(text: str, end: int) -> bool:
    """Whether the "his" that ends at ``end`` has no noun behind it ("the book is his"), so that it becomes "hers"."""
    coupled = _COUPLED.match(text, end)
    if coupled:
        return coupled[1].lower() == "hers"
    word, is_closed = _following(text, end)
    return is_closed or word in _CLOSED


def in_case_of(model: str, word: str) -> str:
    """``word`` in capitals, with one, or as it is, as ``model`` has it.

    >>> in_case_of("SHE", "he"), in_case_of("She", "he"), in_case_of("Mr.", "mrs.")
    ('HE', 'He', 'Mrs.')
    """
    if model.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if model[0].isupper() else word


def _following(text: str, end: int) -> tuple[str, bool]:
    """The next word in small letters; and whether the phrase ends before it: at a mark, a blank line, or the end."""
    found = _NEXT.match(text, end)
    assert found is not None, "the pattern may be empty"
    word = (found["word"] or "").lower()
    if found["opening"]:  # her "friend", but "I saw her"
        return "", not found["blank"]
    is_dash = word == "-" and bool(found["blank"])
    return word, word in _ENDS or is_dash or found["blank"].count("\n") > 1


def _begins_with_vowel(word: str) -> bool:
    return word[0] in "aeiou" or word.startswith("heir")


def _with_article(before: str, word: str, target: str) -> str:
    """``before`` with its last word "a" or "an" mended, where the one gender needs the other article."""
    needs_an = _begins_with_vowel(target)
    article = _ARTICLE.search(before, max(0, len(before) - 12))
    if article is None or needs_an == _begins_with_vowel(word.lower()) or needs_an == (len(article[1]) == 2):
        return before
    # An "A" alone does not tell whether all is in capitals.
    model = "An" if article[1] == "A" and not word.isupper() else article[1]
    return before[: article.start()] + in_case_of(model, "an" if needs_an else "a") + article[2]


def _possessive(word: str, target: str, text: str, end: int) -> tuple[str, int]:
    """What stands for an apostrophe behind the word, and where the text goes on: ladies' for gentlemen's, and back."""
    owned, bare = _OWNED.match(text, end), _OWNED_BARE.match(text, end)
    if owned and word.lower().endswith("men") and target.endswith("s"):
        return text[end], owned.end()
    ends_in_s = word.lower().endswith("s") and not target.endswith("s")
    if bare and ends_in_s and not _OPENED.search(text, 0, end - len(word)):
        return text[end] + ("S" if word.isupper() else "s"), bare.end()
    return "", end
