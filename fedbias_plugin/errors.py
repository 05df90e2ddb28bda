"""The one exception that means "the user can mend this", what it may show of bad data, and what was probably meant."""

import difflib
import signal
from collections.abc import Iterable

from fedbias_plugin.redaction import redacted_text

LONGEST_MESSAGE = 1_000
"""Characters of a message; what a message quotes is cut much shorter, so that only long lists of problems come near."""
LONGEST_QUOTE = 80
LONGEST_NAME = 200


class UserError(ValueError):
    """Wrong input: the message says what is wrong, where it is and what would be right.

    The command line prints it after ``fedbias: error:`` and leaves with exit code 2. What a message quotes from data or
    file names cannot move the cursor, hide text or turn it around: see :func:`printable`. A login in it is replaced,
    and a message that is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_shortened(printable(redacted_text(message)), LONGEST_MESSAGE))


def printable(text: str) -> str:
    """``text`` with every character that does not show spelled out, as in ``repr``; line feeds stay.

    Control characters (terminal escapes), marks that turn the direction of writing, invisible characters and lone
    surrogates are such; letters of every script, emoji and punctuation stay.

    >>> print(printable("café \\x1b[31m\\u202e"))
    café \\x1b[31m\\u202e
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def quoted(value: object) -> str:
    """``repr`` of a value from data, cut to :data:`LONGEST_QUOTE` characters, on one line; never fails.

    >>> quoted("n" * 500)[:3], len(quoted("n" * 500)), quoted(7)
    ("'nn", 80, '7')
    """
    if isinstance(value, str):
        value = value[: LONGEST_QUOTE + 1]
    try:
        return _shortened(printable(repr(value)), LONGEST_QUOTE)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, a list within a list within ...
        return f"a {type(value).__name__} that is too long to show"


def first_line(error: BaseException) -> str:
    """What an error of a library says, in a few words: its first line, or its type when it says nothing."""
    lines = str(error).strip().splitlines()
    return _shortened(lines[0], 400) if lines else type(error).__name__


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``" Did you mean 'bama'?"`` for a name close to a known one, else nothing.

    >>> did_you_mean("bamma", ["host", "bama"])
    " Did you mean 'bama'?"
    """
    wanted = str(name)
    if len(wanted) > LONGEST_NAME:
        return ""
    by_lower_case = {str(choice).lower(): choice for choice in known}
    near = difflib.get_close_matches(wanted.lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[near[0]]!r}?" if near else ""


def _shortened(text: str, longest: int) -> str:
    """``text``, or its two ends with an ellipsis between them."""
    if len(text) <= longest:
        return text
    mark = " ... "
    end = (longest - len(mark)) // 3
    return f"{text[: longest - len(mark) - end]}{mark}{text[-end:]}"


class Stopped(BaseException):
    """A signal asked the run to stop, and it has.

    Args:
        signal_number: the signal's.
        at_once: not at the end of a step, so that what the run holds may be half done.
    """

    def __init__(self, signal_number: int, *, at_once: bool = False) -> None:
        self.signal_number, self.at_once = signal_number, at_once
        super().__init__(signal.Signals(signal_number).name)
