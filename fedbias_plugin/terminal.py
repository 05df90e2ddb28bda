"""How wide a terminal is, and text that fits it: broken between words, never inside one. Elsewhere lines stay whole."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

COMMAND = re.compile(r"\b(?:fedbias|pip install|wandb|hf download)(?: [^\s,;()]+){1,3}")
"""What may be copied to a shell, and must not have a line feed in it."""
GLUE = "\x1f"


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
    return "\n".join(part for line in text.split("\n") for part in _wrapped_line(line, width))


def say(text: str) -> None:
    """Print ``text`` to the standard output, fitted to it where it is a terminal."""
    print(wrapped(text, width_of(sys.stdout)), flush=True)


def _wrapped_line(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    whole = COMMAND.sub(lambda found: found[0].replace(" ", GLUE), line)
    parts = textwrap.wrap(
        whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )
    return [part.replace(GLUE, " ") for part in parts]


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
