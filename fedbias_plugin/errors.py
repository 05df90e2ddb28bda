"""The one exception that means "the user can mend this", and what was probably meant."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Wrong input: the message says what is wrong, where it is and what would be right.

    The command line prints it after ``fedbias: error:`` and leaves with exit code 2.
    """


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """``" Did you mean 'bama'?"`` for a name close to a known one, else nothing.

    >>> did_you_mean("bamma", ["host", "bama"])
    " Did you mean 'bama'?"
    """
    by_lower_case = {str(choice).lower(): choice for choice in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f" Did you mean {by_lower_case[near[0]]!r}?" if near else ""
