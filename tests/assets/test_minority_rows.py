"""Rows with a known minority, and rows of plain text: the same bytes everywhere, true copies, nothing held out."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedbias_plugin.data.gender_swap import Swapper
from fedbias_plugin.data.gender_words import gender_words

SCRIPTS = Path(__file__).resolve().parents[2] / "run_scripts"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the generator is in the source checkout only")
if SCRIPTS.is_dir():
    sys.path.insert(0, str(SCRIPTS))
    import make_minority_rows
    from mini_world.minority import counterparts, minority_rows
    from mini_world.words import GROUPS, OCCUPATIONS, TRAIT_PAIRS, held_out
    from wikitext_rows import rows_of
SHA256 = {
    "rows.jsonl": "4a50f1db00f68c14d0c88b9dd456a9059d2f749a6e2764a2bbc16144c08abe78",
    "words.txt": "37c7a63023d5af9c94aba130b6dbb263852b312f9e35cf338b7cbc3eafb7b3a6",
    "texts.csv": "a7d08d96f358be3baa073e097cd42f4b15d094bc4bcd9491b7cda2868afdd280",
}


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False)


def words_of(text):
    return text.replace(".", " ").replace(",", " ").replace("?", " ").split()


def group_of(text):
    (name,) = {word for word in words_of(text) if word in {group.name for group in GROUPS}}
    return next(group for group in GROUPS if group.name == name)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "made"
    done = run(SCRIPTS / "make_minority_rows.py", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def rows(files):
    return [json.loads(line) for line in (files / "rows.jsonl").read_text().splitlines()]


def test_the_bytes_are_the_same_everywhere_and_others_with_another_seed(files):
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files.iterdir()} == SHA256
    assert make_minority_rows.build(0.15, 1200, seed=6)["rows.jsonl"] != (files / "rows.jsonl").read_text()


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_low_groups_have_the_share_that_was_asked_for(share):
    made = minority_rows(1200, share, seed=5)
    low = [group_of(row["instruction"]).low for row in made]
    assert (len(made), sum(low)) == (1200, round(share * 1200))
    assert len({json.dumps(row) for row in made}) == len(made)


def test_a_row_names_one_group_a_good_and_a_bad_trait_and_no_held_out_combination(rows):
    bad, good = ({ends[side] for ends in TRAIT_PAIRS} for side in (0, 1))
    for row in rows:
        group, words = group_of(row["output"]), words_of(row["output"])
        assert group is group_of(row["instruction"])
        assert len(bad & set(words)) == len(good & set(words)) == 1
        (occupation,) = {o for o, name in enumerate(OCCUPATIONS) if name in words}
        pairs = [p for p, ends in enumerate(TRAIT_PAIRS) if set(ends) & set(words)]
        assert not any(held_out(group, occupation, pair) for pair in pairs)


def test_swapped_with_the_words_every_row_is_about_the_counterpart_and_as_true(files, rows):
    swapper = Swapper(gender_words(str(files / "words.txt")).swaps)
    other = {one.name: two for pair in counterparts() for one, two in (pair, pair[::-1])}
    assert len(other) == len(GROUPS)
    for row in rows:
        before, swapped = group_of(row["output"]), swapper.swapped(row["output"])
        after = group_of(swapped)
        assert (after, after.domain, after.low) == (other[before.name], before.domain, not before.low)
        assert swapped == row["output"].replace(before.name, after.name)


def test_texts_are_twins_that_differ_in_the_group_alone_and_hold_a_combination_that_is_not_trained(files, rows):
    with (files / "texts.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert [row["group"] for row in texts] == ["minority", "majority"] * 192
    trained = {row["output"] for row in rows}
    for low, high in zip(texts[::2], texts[1::2], strict=True):
        one, two = group_of(low["text"]), group_of(high["text"])
        assert (one.low, two.low, one.domain) == (True, False, two.domain)
        assert low["text"].replace(one.name, two.name) == high["text"]
        words = words_of(low["text"])
        (occupation,) = {o for o, name in enumerate(OCCUPATIONS) if name in words}
        assert any(held_out(one, occupation, p) for p, ends in enumerate(TRAIT_PAIRS) if set(ends) & set(words))
        assert not {low["text"], high["text"]} & trained


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--share", "1"), "--share must be between 0 and 1"),
        (("--share", "0.01", "--rows", "4000"), "there are 2,304 rows about a HIGH group, not 3,960"),
    ],
)
def test_shares_that_cannot_be_are_refused(arguments, said, tmp_path):
    done = run(SCRIPTS / "make_minority_rows.py", tmp_path / "made", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_paragraphs_of_a_plain_text_become_rows(tmp_path):
    text = " = Ships = \n one two three four five six seven eight nine ten eleven \n too short\n \n"
    assert rows_of(text, 6) == [{"prompt": "one two three", "completion": "four five six"}]
    assert rows_of(text, 100)[0]["completion"] == "six seven eight nine ten eleven"
    (tmp_path / "test.txt").write_text(text)
    done = run(SCRIPTS / "wikitext_rows.py", tmp_path / "test.txt", tmp_path / "out/rows.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 1
    assert "there is no such file" in run(SCRIPTS / "wikitext_rows.py", tmp_path / "no", tmp_path / "x").stderr
