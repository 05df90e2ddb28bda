"""How wide a terminal is, and text that fits it: broken between words, never inside one. Elsewhere lines stay whole."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

COMMAND = re.compile(r"\b(?:fedbias|pip install|wandb|hf download|git clone)(?: [^\s,;()]+){1,3}")
"""What may be copied to a shell, and must not have a line feed in it."""
GLUE = "\x1f"
INDENT, GAP = "  ", "   "
"""Before the first column of a table, and between two."""


def width_of(stream: TextIO | None) -> int | None:
    """Columns of the terminal behind ``stream``; None where it is none, or nobody knows.

    ``COLUMNS`` wins, as everywhere.
    """
    if stream is None or not hasattr(stream, "isatty") or not stream.isatty():
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def wrapped(text: str, width: int | None) -> str:
    """``text`` with every line that is too long broken between words, its rest indented by two more.

    Args:
        text: lines.
        width: columns; None leaves everything as it is.

    >>> print(wrapped("one two three: fedbias data list", 16))
    one two three:
      fedbias data list
    """
    if width is None:
        return text
    lines = []
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False, expand_tabs=False)
    for line in text.split("\n"):
        if len(line) <= width:
            lines.append(line)
            continue
        wrapper.subsequent_indent = " " * (len(line) - len(line.lstrip()) + 2)
        whole = COMMAND.sub(lambda found: found[0].replace(" ", GLUE), line)
        lines += [part.replace(GLUE, " ") for part in wrapper.wrap(whole)]
    return "\n".join(lines)


def in_words(seconds: float) -> str:
    """A length of time as one reads it.

    >>> [in_words(seconds) for seconds in (40, 100, 3599, 7200, 200000)]
    ['40 seconds', '2 minutes', '60 minutes', '2.0 hours', '2.3 days']
    """
    for least, size, unit, digits in ((86_400, 86_400, "days", 1), (3_600, 3_600, "hours", 1), (90, 60, "minutes", 0)):
        if seconds >= least:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} seconds"


def say(text: str) -> None:
    """Print ``text`` to the standard output, fitted to it where it is a terminal."""
    print(wrapped(text, width_of(sys.stdout)), flush=True)


def terminal_console(stream: TextIO | None = None) -> Console | None:
    """A ``rich`` console on ``stream`` if it is a terminal and ``rich`` is installed, else None.

    For the standard output it is the process's one console, which tables and progress bars must share.
    """
    target = stream or sys.stdout
    if not (hasattr(target, "isatty") and target.isatty()):
        return None
    try:
        from rich import get_console
        from rich.console import Console
    except ImportError:
        return None
    return get_console() if stream is None else Console(file=stream)


def text_table(rows: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """Rows of a terminal, columns lined up; a table that is too wide goes on below, its first column again in front.

    >>> print("\\n".join(text_table([["run", "round", "Delta"], ["mine", "5", "3.1"]], 14)))
      run    round
      mine   5
      run    Delta
      mine   3.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        INDENT + GAP.join(row[column].ljust(widths[column]) for column in part).rstrip()
        for part in _side_by_side(widths, width)
        for row in rows
    ]


def fits(rows: Sequence[Sequence[str]], width: int | None) -> bool:
    """Whether all columns of a table stand beside each other in ``width`` columns; None is as wide as anything."""
    return len(_side_by_side([max(map(len, column)) for column in zip(*rows, strict=True)], width)) == 1


def _side_by_side(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """The columns that stand beside each other, the first one in every part."""
    parts = [[0]]
    for column in range(1, len(widths)):
        taken = len(INDENT) + sum(widths[one] + len(GAP) for one in parts[-1]) + widths[column]
        if width is not None and taken > width and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(column)
    return parts
