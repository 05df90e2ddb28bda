"""Which words are swapped, and what becomes of a sentence around them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.data.gender_swap import Swapper, is_object
from fedbias_plugin.data.gender_words import ADDED, OVERRIDES, ZHAO2018, gender_words
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError

OWN = gender_words("own")
SWAPPER = Swapper(OWN.swaps)
FIXED = sorted(
    word
    for word, other in OWN.swaps.items()
    if word not in {"her", "his", *OWN.one_way} and other not in {"her", "his"} and word.isalpha()
)
"""Words of the list that come back by themselves."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("She told her brother that he was an actor.", "He told his sister that she was an actress."),
        ("I saw her. HER hat is hers.", "I saw him. HIS hat is his."),
        ("His book is here; the book is his.", "Her book is here; the book is hers."),
        ("Let her go, tell her quietly and give her time.", "Let him go, tell him quietly and give him time."),
        ("Her back hurts. They sent her back.", "His back hurts. They sent him back."),
        ("Give it to her (now), or to her", "Give it to him (now), or to him"),
        ("In her \"Odes\"; 'I know her' is said.", "In his \"Odes\"; 'I know him' is said."),
        ("I met her\n\nThen we left.", "I met him\n\nThen we left."),
        ("his or her own, her/his own, him/her, his/hers", "her or his own, his/her own, her/him, hers/his"),
        ("SHE'S late, she’ll wait, he wasn't, He'd go", "HE'S late, he’ll wait, she wasn't, She'd go"),
        ("the actress's role, the actress' role", "the actor's role, the actor's role"),
        ("the girls' room, the wives' club", "the boys' room, the husbands' club"),
        ("the gentlemen's club, the ladies' club", "the ladies' club, the gentlemen's club"),
        ("men and women, heroes and heroines", "women and men, heroines and heroes"),
        ("An uncle, a waiter, AN AUNT, an heiress", "An aunt, a waitress, AN UNCLE, an heir"),
        ("an earl and A COUNTESS; a countess", "a countess and AN EARL; an earl"),
        ("An earl. A countess. a 'countess'", "A countess. An earl. an 'earl'"),
        ("an actor and an empress", "an actress and an emperor"),
        ("Mr. and Mrs. Woolf, her father-in-law", "Mrs. and Mr. Woolf, his mother-in-law"),
        ("manage sheep, othering history, heroic", "manage sheep, othering history, heroic"),
        ("www.king.com, https://a.b/he/she, king@he.org", "www.king.com, https://a.b/he/she, king@he.org"),
        ("the_king, he2, 2he", "the_king, he2, 2he"),
        ("ſhe, kıng, KİNG", "ſhe, kıng, KİNG"),
        ("", ""),
    ],
)
def test_a_text_reads_as_it_should(before, after):
    assert SWAPPER.swapped(before) == after
    assert SWAPPER.has_word(before) == (before != after)


def test_the_apostrophe_that_ends_a_quotation_stays_one():
    assert SWAPPER.swapped("She said: 'I am an actress' and left.") == "He said: 'I am an actor' and left."


def sentences() -> st.SearchStrategy[str]:
    """Words of the list and others, in any case, with marks between them."""
    cased = st.sampled_from([str.lower, str.upper, str.capitalize])
    listed = st.builds(lambda word, case: case(word), st.sampled_from(FIXED), cased)
    article = st.builds(lambda word: ("an " if word[0].lower() in "aeiou" else "a ") + word, listed)
    others = st.sampled_from(["sees", "the", "heir-like", "history", "2", "wasn't", "the man's", "—", "and"])
    words = st.lists(st.one_of(listed, article, others), max_size=12)
    return st.builds(lambda parts, mark: mark.join(parts), words, st.sampled_from([" ", ", ", ". ", "\n", " (", "/"]))


@given(sentences())
def test_a_text_without_a_doubtful_word_comes_back_when_it_is_swapped_twice(text):
    text = re.sub(r"\b(a|an) (heir|heiress)(s|es)?\b", r"an \2\3", text, flags=re.IGNORECASE)
    once = SWAPPER.swapped(text)
    assert SWAPPER.swapped(once) == text
    assert (once != text) == SWAPPER.has_word(text)


def test_our_own_list_is_used_without_files_and_every_word_of_it_has_a_counterpart():
    words = gender_words("auto", None)
    assert (words.name, words.title, words.origin, words.paths) == ("own", "own", "bundled", ())
    assert words == OWN
    assert 200 < len(words.swaps) < 320
    assert set(words.swaps.values()) <= words.swaps.keys()
    assert words.one_way == ["hers", "him", "ms."]
    assert {"policewomen": "policemen", "wives": "husbands", "heroes": "heroines"}.items() <= words.swaps.items()


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A data folder with lists of words of somebody's own."""
    for file, text in zip(ZHAO2018.forms[0].files, ("he\tshe\nshe he \nhis \t her\n", "\nfox vixen\n"), strict=True):
        path = tmp_path / "given" / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "given"


def test_lists_of_a_data_folder_take_the_place_of_our_own_and_lack_nothing_that_her_needs(lists, monkeypatch):
    words = gender_words(data_dir=str(lists))
    expected = {"he": "she", "she": "he", "his": "her", "her": "his", "hers": "his", "fox": "vixen", "vixen": "fox"}
    assert words.swaps == expected
    assert (words.title, words.origin, len(words.paths)) == ("zhao2018, 2 overrides", "data_dir", 2)
    assert gender_words("auto", "mini") == gender_words("own", str(lists)) == OWN
    monkeypatch.setenv("FEDBIAS_DATA", str(lists))
    assert gender_words().swaps == expected
    assert gender_words("auto", "mini") == OWN


def test_a_file_of_somebody_s_own_is_read_both_ways_as_it_is(tmp_path):
    path = tmp_path / "groups.txt"
    path.write_text("Zorvan Melki\nzorvans melkis\nguy girl\n")
    words = gender_words(str(path))
    assert (words.title, words.origin, words.paths) == ("groups.txt", "file", (path,))
    assert (
        Swapper(words.swaps).swapped("A Zorvan met the Melkis: ZORVANS, guy.")
        == "A Melki met the Zorvans: MELKIS, girl."
    )
    with pytest.raises(UserError, match=r"none\.txt: the list of words cannot be read: "):
        gender_words(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"he she\n\nking\n", r"swaps\.txt, line 3: a line must hold two different words, such as: actor actress\.$"),
        (b"he she it\n", r"swaps\.txt, line 1: a line must hold two different words"),
        (b"he He\n", r"swaps\.txt, line 1: a line must hold two different words"),
        (b"\n", r"swaps\.txt: the list of words is empty\.$"),
        (b"\xff\xfe\n", r"swaps\.txt: the list of words cannot be read: "),
    ],
)
def test_a_damaged_list_is_refused_with_its_file_and_line(lists, text, message):
    (lists / "cda/zhao2018_generalized_swaps.txt").write_bytes(text)
    with pytest.raises(UserError, match=message):
        gender_words(data_dir=str(lists))


def test_the_published_lists_are_read_with_every_override_and_no_other_fault_is_left(real_data):
    words = gender_words(data_dir=str(real_data))
    assert words.overrides == len(OVERRIDES) + len(ADDED)
    assert words.title == f"zhao2018, {words.overrides} overrides"
    assert words.one_way == ["bridegroom", "bridegrooms", "hers", "him", "lord", "lords", "ms."]
    assert set(words.swaps.values()) <= words.swaps.keys()
    repaired = {"guy": "gal", "gentleman": "lady", "chairwomen": "chairmen", "nun": "monk"}
    assert repaired.items() <= words.swaps.items()
    assert not {"mentleman", "governor", "godess", "god", "host", "miss"} & words.swaps.keys()
    swapped = Swapper(words.swaps).swapped("She told her brother that he was an actor.")
    assert swapped == "He told his sister that she was an actress."


def pronouns(texts: list[str]) -> Iterator[tuple[str, bool]]:
    """His or him, and whether the rule says object of the "her" in its place."""
    for text in texts:
        for match in re.finditer(r"(?<!\w)(his|him)(?!\w)", text, re.IGNORECASE):
            yield match[0].lower(), is_object(text, *match.span())


def test_her_is_told_apart_on_real_rows(real_data):
    rows = load_rows("alpaca", "clean", str(real_data)).rows
    found = list(pronouns([text for row in rows for text in (row.instruction, row.response)]))
    possessives = [is_wrong for word, is_wrong in found if word == "his"]
    objects = [is_right for word, is_right in found if word == "him"]
    assert len(possessives) > 700
    assert len(objects) > 150
    assert sum(possessives) / len(possessives) < 0.02
    assert sum(objects) / len(objects) > 0.88
