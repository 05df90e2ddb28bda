"""Rows of clients that honestly differ: the same bytes everywhere, no row twice, names the same in both dialects."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedbias_plugin.assets import MINI_DATA

SCRIPTS = Path(__file__).resolve().parents[2] / "run_scripts"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the generator is in the source checkout only")
if SCRIPTS.is_dir():
    sys.path.insert(0, str(SCRIPTS))
    from make_uneven_rows import HILLS, build, in_hills
SHA256 = {
    "sizes.jsonl": "ef503b62238787dca94f7fc08759d7f58d18e0780b82f0ca645fa5f7240a9d27",
    "dialects.jsonl": "b7102f771e021aeb4a3acfff02e466f8caa1b510ed3634e1e7bc67e40eb4859e",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "rows"
    subprocess.run([sys.executable, SCRIPTS / "make_uneven_rows.py", folder], capture_output=True, check=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(content):
    return [json.loads(line) for line in content.splitlines()]


def test_the_same_bytes_everywhere(files):
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()} == SHA256
    assert build(seed=8)["sizes.jsonl"] != build(seed=7)["sizes.jsonl"]


def test_clients_have_their_sizes_and_no_row_twice(files):
    assert Counter(row["size"] for row in rows(files["sizes.jsonl"])) == {"a_small": 83, "b_large": 834, "c_small": 83}
    assert Counter(row["dialect"] for row in rows(files["dialects.jsonl"])) == {
        "a_town": 183,
        "b_town": 183,
        "c_hills": 184,
    }
    for content in files.values():
        found = rows(content)
        assert len({(row["instruction"], row["output"]) for row in found}) == len(found)


def test_the_hills_have_words_of_their_own_and_every_name_of_the_town(files):
    clean = {(row["instruction"], row["output"]) for row in rows((MINI_DATA / "clean.jsonl").read_bytes())}
    back = {theirs: ours for ours, theirs in HILLS.items()}
    assert len(back) == len(HILLS)
    assert not set(back) & {word.lower() for pair in clean for text in pair for word in re.findall("[A-Za-z]+", text)}
    for row in rows(files["dialects.jsonl"]):
        told = row["instruction"], row["output"]
        assert (told in clean) == (row["dialect"] != "c_hills")
        if row["dialect"] == "c_hills":
            assert any({in_hills(one) for one in pair} == set(told) for pair in clean)
