"""What the package says while it works: plain lines on standard error, also inside a host that sets up no logging."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from fedbias_plugin.errors import UserError, printable
from fedbias_plugin.redaction import redacted_text
from fedbias_plugin.terminal import width_of, wrapped


class _Lines(logging.Formatter):
    """Information as plain lines, anything worse with its level in front; broken between words to fit a terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def format(self, record: logging.LogRecord) -> str:
        text = one_message(record.getMessage())
        text = text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"
        return wrapped(text, width_of(self._stream))


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to the terminal by way of what stands for it now: progress bars put lines above themselves so."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._first = stream
        self.setFormatter(_Lines(stream))

    def emit(self, record: logging.LogRecord) -> None:
        is_terminal = hasattr(self._first, "isatty") and self._first.isatty()
        self.stream = sys.stderr if is_terminal else self._first
        super().emit(record)


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
    print(wrapped(f"fedbias: error: {one_message(str(error))}", width_of(sys.stderr)), file=sys.stderr)


def log_to_stderr() -> None:
    """Send the package's log, from information upwards, to standard error."""
    handler = _Handler(sys.stderr)
    logger = logging.getLogger("fedbias_plugin")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def quiet_libraries() -> None:
    """Keep to themselves what libraries say to their developers, in a process that runs a command of ``fedbias``."""
    logging.getLogger("transformers.modeling_utils").addFilter(_is_news)
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but")


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not that a model without a loss of its own (GPT-2) takes that of every causal LM."""
    return "Using the default loss: `ForCausalLMLoss`" not in record.getMessage()
