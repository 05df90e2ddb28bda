"""What the package says while it works: plain lines on standard error, also inside a host that sets up no logging."""

from __future__ import annotations

import logging
import sys

from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.redaction import redacted_text


class _Lines(logging.Formatter):
    """Information as plain lines, anything worse with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = one_message(record.getMessage())
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def one_message(text: str) -> str:
    """``text`` as a terminal may show it: printable, without logins, and no second line that looks like a first one.

    >>> print(one_message("no such file: a\\nfinished: b"))
    no such file: a
      finished: b
    """
    first, *more = printable(redacted_text(text)).split("\n")
    return "\n".join([first, *(f"  {line.removeprefix('  ')}" for line in more)])


def print_error(error: UserError) -> None:
    """The one line that wrong input ends with."""
    print(f"fedbias: error: {one_message(str(error))}", file=sys.stderr)


def log_to_stderr() -> None:
    """Send the package's log, from information upwards, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("fedbias_plugin")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
