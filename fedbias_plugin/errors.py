"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """Wrong input: the message says what is wrong, where it is and what would be right.

    The command line prints it after ``fedbias: error:`` and leaves with exit code 2.
    """
