"""Hostile data: nasty texts, rows around them, and damage to the bytes of a file; and what must come of it.

The cases are the same in every run (``derandomize``); ``cases`` sets their number.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedbias_plugin.errors import LONGEST_MESSAGE, UserError, printable

Result = TypeVar("Result")

NASTY = (
    "",
    " ",
    "\0",
    "a\0b",
    "half \ud83d",
    "\udc80",
    "\u202etxt.exe\u202c",
    "\u200f\u061c",
    "\x1b[2J\x1b]0;title\x07",
    "\r\nfedbias: finished",
    "\u2028\u2029\x85",
    "\ufeff",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)",
    "<script>alert(1)</script>",
    "$(touch x); `touch x` && rm -rf .",
    "../../../etc/passwd",
    "{instruction}{0.__class__}%s%n",
    "### Response: ### Instruction:",
    "</s><s>",
    "NaN",
    "null",
    "1e999",
    '"',
    "'",
    ",",
    "[/red]",
    "é🙂漢字עברית",
    "z\u0300" * 50,
    "long " * 300,
)
SPLINTERS = (
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xfe\xff",
    b"\0",
    b"\r",
    b"\n",
    b'"',
    b"\\",
    b"\\ud800",
    b"\\u0000",
    b",",
    b"{",
    b"]",
    b"&a [*a]",
    b"NaN",
    b"1" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xe2\x80\xae",
    b"\x1b[31m",
)

texts = st.sampled_from(NASTY) | st.text(st.characters(), max_size=12)
"""Texts of every kind, lone surrogates among them."""

scalars = texts | st.none() | st.booleans() | st.integers() | st.floats()
values = scalars | st.recursive(
    scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(texts, part, max_size=3)
)


def cases(number: int) -> Callable[..., Any]:
    """Settings: ``number`` cases, the same in every run, each of a few seconds at most; times ``HOSTILE_CASES``."""
    return settings(
        max_examples=number * int(os.environ.get("HOSTILE_CASES", "1")),
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def rows(draw: st.DrawFn, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Up to six rows that mostly have these columns and mostly texts in them; some rows repeat."""
    found: list[dict[str, Any]] = []
    for number in range(draw(st.integers(0, 6))):
        row = {column: f"{column} {number}" for column in columns}
        for column in draw(st.sets(st.sampled_from(columns), max_size=2)):
            row[column] = draw(texts | values)
        if draw(st.integers(0, 9)) == 0:
            row.pop(draw(st.sampled_from(columns)))
        if draw(st.integers(0, 9)) == 0:
            row[draw(texts)] = draw(values)
        found += [row] * draw(st.sampled_from((1, 1, 1, 2)))
    return found


def text_rows(columns: tuple[str, ...]) -> st.SearchStrategy[list[dict[str, str]]]:
    """Rows with all columns and nothing but texts."""
    row = st.fixed_dictionaries({column: st.just(f"a {column}") | texts for column in columns})
    return st.lists(row, min_size=1, max_size=5)


def json_bytes(document: Any, ascii_only: bool) -> bytes:
    """JSON; without ``ascii_only`` lone surrogates become bytes that are no UTF-8."""
    return json.dumps(document, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


def lines_bytes(found: list[Any], ascii_only: bool) -> bytes:
    """A JSON document a line."""
    return b"".join(json_bytes(row, ascii_only) + b"\n" for row in found)


def csv_bytes(found: list[dict[str, Any]], columns: tuple[str, ...]) -> bytes:
    """A csv file as a spreadsheet writes it."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(columns)
    writer.writerows([row.get(column, "") for column in columns] for row in found)
    return stream.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """``content`` as it is, cut off, with a splinter in it, a part doubled or lost; or something else entirely."""
    kind = draw(st.sampled_from(("whole", "whole", "cut", "splinter", "splinters", "lost", "doubled", "bit", "other")))
    place = draw(st.integers(0, len(content)))
    end = min(len(content), place + draw(st.integers(0, 40)))
    if kind == "cut":
        return content[:place]
    if kind in ("splinter", "splinters"):
        splinter = draw(st.sampled_from(SPLINTERS)) * (1 if kind == "splinter" else 3)
        return content[:place] + splinter + content[place:]
    if kind == "lost":
        return content[:place] + content[end:]
    if kind == "doubled":
        return content[:end] + content[place:end] + content[end:]
    if kind == "bit" and place < len(content):
        return content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
    return draw(st.binary(max_size=80)) if kind == "other" else content


def outcome(action: Callable[[], Result], path: Path | None = None) -> Result | None:
    """What ``action`` gives, or None where it refuses with a message that a user can read; all else fails the test."""
    try:
        return action()
    except UserError as error:
        check_message(str(error), path)
        return None


def check_message(message: str, path: Path | None = None) -> None:
    """A message is short, of few lines, without anything that a terminal obeys, and names the file."""
    assert 0 < len(message) <= LONGEST_MESSAGE
    assert message == printable(message)
    assert message.count("\n") <= 3
    if path is not None:
        assert path.name in message


def is_text(value: object) -> bool:
    """Whether ``value`` is a text that every file can hold."""
    return isinstance(value, str) and value.encode("utf-8").decode("utf-8") == value
