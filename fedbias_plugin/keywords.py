"""Flags as keyword arguments of Python: the same names, the same checks, and errors that name them as Python does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import field_types, unknown_name


def known_keywords(
    where: str, given: Mapping[str, Any], classes: Sequence[type], not_here: Mapping[str, str]
) -> dict[str, Any]:
    """``given`` with every name checked against the flags of ``classes``; a tuple becomes a list.

    Args:
        where: the call, for errors.
        given: keyword -> value.
        classes: dataclasses of flags.
        not_here: a name that is no flag of these -> what to do instead.

    Raises:
        UserError: an unknown name, with what was probably meant.
    """
    known = [name for cls in classes for name in field_types(cls)]
    for name in given:
        if name not in known:
            raise unknown_name(name, known, not_here, where)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@contextmanager
def named_as_keywords() -> Iterator[None]:
    """Errors about flags name them without their dashes: ``aggregation 'bamma' is unknown``."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--(?=[a-z])", "", str(error))) from None
