"""Reading WinoBias: the eight released files side by side, or one csv file of our own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.known_dataset import RAW, DataFile, Form, KnownDataset
from fedbias_plugin.metrics.crows_pairs_files import Pair

_HOME = f"{RAW}/uclanlp/corefBias/0bce984dd081bbc10b0622f326727a024c607895/WinoBias/wino/data"
FILES = {
    "pro_stereotyped_type1.dev": "26235f6f584682f52f871a33eda6e7195023b6fa",
    "anti_stereotyped_type1.dev": "ddcd659e0070e5fa6d8b0608b00ffd24d7e913b5",
    "pro_stereotyped_type1.test": "14dfa3788194ffd9b7bce455676b9a312e547260",
    "anti_stereotyped_type1.test": "c8872b23832acb49a123f7a8e0e6dee4c7b0d35b",
    "pro_stereotyped_type2.dev": "584d9c1cc6672b014d9aac3c2383650866470b61",
    "anti_stereotyped_type2.dev": "04d2d43335149db830bcf487e71e3ad84b5f0ad2",
    "pro_stereotyped_type2.test": "e0c786e81a6f8e7ee84ba1cb76167cc0bf941c95",
    "anti_stereotyped_type2.test": "d83b0730881d470a76d95c9d2d5992a343bd2423",
}


def _file(name: str, git_blob: str) -> DataFile:
    """Their home has the split at the end of the name."""
    return DataFile(f"winobias/{name}.txt", git_blob=(git_blob,), url=f"{_HOME}/{name.replace('.', '.txt.')}")


WINOBIAS = KnownDataset(
    name="winobias",
    kind="winobias",
    title="WinoBias",
    licence="MIT",
    home="uclanlp/corefBias",
    warning="For evaluation only.",
    forms=(Form(tuple(_file(*one) for one in FILES.items()), rows=1_584),),
)

FEMALE, MALE = frozenset(["she", "her", "hers", "herself"]), frozenset(["he", "him", "his", "himself"])
_WORD = re.compile(r"[^\W\d_]+|\S")
_NOUN = re.compile(r"\[+(?:the|a|an)\s+([^\]\[]+)\]", re.IGNORECASE)


@dataclass(frozen=True)
class WinoPair(Pair):
    """A pair whose ``more`` is pro-stereotypical; ``direction`` is the gender of its pronoun, ``bias_type`` its type.

    ``cluster``: the occupations that it names.
    """

    cluster: str = ""


def released_pairs(pro: Path, anti: Path) -> list[WinoPair]:
    """The pairs of two files, line by line; numbers and brackets are taken off, a doubled "the" too.

    Raises:
        UserError: a file cannot be read, or they differ in length.
    """
    from fedbias_plugin.scoring.items import read_data_file

    lines = [[line for line in read_data_file(path)[0].splitlines() if line.strip()] for path in (pro, anti)]
    if len(lines[0]) != len(lines[1]):
        raise UserError(f"{pro} has {len(lines[0])} sentences and {anti.name} {len(lines[1])}; they belong together.")
    nouns = {noun.strip().lower() for line in lines[0] + lines[1] for noun in _NOUN.findall(line)}
    kind, split = pro.name.removeprefix("pro_stereotyped_").removesuffix(".txt").split(".")
    return [
        _pair(f"{kind}.{split}/{number}", kind, _plain(one), _plain(other), nouns)
        for number, (one, other) in enumerate(zip(*lines, strict=True), 1)
    ]


def bundled_pairs(path: Path, text: str) -> list[WinoPair]:
    """The rows of a csv file with ``cluster``, ``type``, ``pro`` and ``anti``.

    Raises:
        UserError: a column is missing.
    """
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows or not {"cluster", "type", "pro", "anti"} <= rows[0].keys():
        raise UserError(f"{path}: a csv file of pairs needs the columns cluster, type, pro and anti.")
    pairs = [_pair(str(number), row["type"], row["pro"], row["anti"], ()) for number, row in enumerate(rows)]
    return [replace(one, cluster=row["cluster"]) for one, row in zip(pairs, rows, strict=True)]


def _pair(name: str, kind: str, pro: str, anti: str, nouns: Collection[str]) -> WinoPair:
    words = {word.lower() for word in _WORD.findall(pro)} - {word.lower() for word in _WORD.findall(anti)}
    named = sorted(noun for noun in nouns if re.search(rf"\b{re.escape(noun)}\b", pro, re.IGNORECASE))
    return WinoPair(name, pro, anti, "female" if words & FEMALE else "male", kind, " and ".join(named))


def _plain(line: str) -> str:
    """
    >>> _plain("3 The clerk told the [the cook] that [he] was late.")
    'The clerk told the cook that he was late.'
    """
    sentence = re.sub(r"^\s*\d+\s+", "", line)
    return re.sub(r"\b(the) the\b", r"\1", re.sub(r"[\[\]]", "", sentence), flags=re.IGNORECASE).strip()


def is_minimal(pair: WinoPair) -> bool:
    """Whether the sentences differ in pronouns of the other gender alone, all in one direction."""
    one, other = ([word.lower() for word in _WORD.findall(text)] for text in (pair.more, pair.less))
    differing = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    if len(one) != len(other) or not differing:
        return False
    return any(
        all(a in first and b in second for a, b in differing) for first, second in ((MALE, FEMALE), (FEMALE, MALE))
    )
