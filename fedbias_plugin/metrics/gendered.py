"""What the gender metrics share: which words are of which gender, and the one list of professions."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.known_dataset import RAW, Form, KnownDataset

SECTION = "Gender metrics of the global model"
FEMALE = frozenset(["she", "her", "hers", "herself", "woman", "women", "she's", "girl", "girls"])
MALE = frozenset(["he", "him", "his", "himself", "man", "men", "he's", "boy", "boys"])
"""Pronouns, man and woman, boy and girl: the kind of word that BOLD counts (Dhamala et al. 2021, arXiv:2101.11718)."""

PROFESSIONS = KnownDataset(
    name="professions",
    kind="professions",
    title="the professions of Bolukbasi et al. (2016)",
    licence="MIT",
    home="tolga-b/debiaswe",
    forms=(
        Form.of(
            "cda/debiaswe_professions.json",
            sha256=("32cc82c7761e7cfb14e37e06dc1aa9f758bc8441f79ca7288996d3fc7c24639a",),
            git_blob=("b6897fe6ce421396385a31d2624aaa928ea18808",),
            rows=320,
            url=f"{RAW}/tolga-b/debiaswe/6bb03ee2a0d7214339e513ca71cd0a99069dc29c/data/professions.json",
        ),
    ),
)
"""Name, definitional score, stereotypical score: 139 of the 320 have the definitional score 0."""

TOLD = {"female": True, "minority": True, "male": False, "majority": False}
"""Group that a file tells -> whether it is female; a minority of another kind stands in the same place."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, ``he's`` being one.

    >>> words_of("She said he’s 40.")
    ['she', 'said', "he's"]
    """
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def count_gendered(text: str, female: Collection[str] = FEMALE, male: Collection[str] = MALE) -> tuple[int, int]:
    """How many words of a text are female, and how many male.

    >>> count_gendered("He said that she's his boss.")
    (1, 2)
    """
    words = words_of(text)
    return sum(word in female for word in words), sum(word in male for word in words)


def read_professions(path: Path, text: str) -> list[str]:
    """The professions that are not of one gender by definition, in file order; ``_`` becomes a blank.

    Raises:
        UserError: the file holds no list of name, definitional score and stereotypical score.
    """
    rows = read_document(path, text)
    rows = rows["professions"] if isinstance(rows, dict) else rows
    try:
        return [str(name).replace("_", " ") for name, definitional, _ in rows if float(definitional) == 0.0]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{path}: a profession must be [name, definitional score, stereotypical score]; {first_line(error)}."
        ) from error


def read_document(path: Path, text: str) -> Any:
    """The JSON in ``text``, the content of ``path``; that under ``data`` in a bundled file.

    Raises:
        UserError: it is no JSON, or empty.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({first_line(error)}).") from error
    found = found.get("data", found) if isinstance(found, dict) else found
    if not isinstance(found, (dict, list)) or not found:
        raise UserError(f"{path} holds nothing to measure on.")
    return found


def read_groups(path: Path, text: str) -> list[tuple[str, str, bool]]:
    """Row, text and whether it is about the female (minority) group, of a CSV file with the columns group and text.

    Raises:
        UserError: a row has no text or an unknown group, or one of the two groups has no row.
    """
    found = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
        group, own = row.get("group"), (row.get("text") or "").strip()
        if group not in TOLD or not own:
            raise UserError(f"{path}, row {number}: needs a text, and a group that is one of {', '.join(TOLD)}.")
        found.append((str(number), own, TOLD[group]))
    if len({is_female for *_, is_female in found}) < 2:
        raise UserError(f"{path}: both groups need a row, female and male (or minority and majority).")
    return found
