"""What the package says while it works: plain lines on standard error, also inside a host that sets up no logging."""

from __future__ import annotations

import logging
import sys

from fedbias_plugin.errors import UserError


class _Lines(logging.Formatter):
    """Information as plain lines, anything worse with its level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def print_error(error: UserError) -> None:
    """The one line that wrong input ends with."""
    print(f"fedbias: error: {error}", file=sys.stderr)


def log_to_stderr() -> None:
    """Send the package's log, from information upwards, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logger = logging.getLogger("fedbias_plugin")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
