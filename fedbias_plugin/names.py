"""What may be a name: the value of a flag, a file, an item or a category of a benchmark."""

from __future__ import annotations

import unicodedata

from fedbias_plugin.errors import LONGEST_NAME, UserError, quoted

UNNAMEABLE = {"Cc": "a control character", "Cs": "half a character (the name is not UTF-8)"}


def check_name(name: str, where: str, longest: int | None = None) -> str:
    """``name``, which can be written to every file and, through ``printable``, to every terminal.

    Args:
        name: to be checked.
        where: begins the message.
        longest: most characters it may have; None for no limit.

    Raises:
        UserError: it holds a control character or a lone surrogate (bytes that are not UTF-8), or is too long.
    """
    for letter in name:
        kind = UNNAMEABLE.get(unicodedata.category(letter))
        if kind:
            raise UserError(f"{where} {quoted(name)} holds U+{ord(letter):04X}, {kind}; give it another name.")
    if longest is not None and len(name) > longest:
        raise UserError(f"{where} {quoted(name)} has {len(name):,} characters; at most {longest} are allowed.")
    return name


def check_label(name: str, where: str) -> str:
    """``name`` of an item or a category: as :func:`check_name`, at most ``LONGEST_NAME`` characters.

    Arrays of names take four bytes a character of the longest for every item.
    """
    return check_name(name, where, LONGEST_NAME)
