"""Names of the server algorithms, for arguments and for code that needs no arithmetic; imports nothing heavy."""

from __future__ import annotations

from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.registry import EXTENSIONS, names

ALGORITHMS = tuple(EXTENSIONS["algorithm"])
"""This package's own, which OpenFedLLM has too."""
LOCAL = "local"


def local_client(fed_alg: str) -> int | None:
    """N of ``localN`` (one client trains alone), None for every other algorithm.

    The whole number counts; OpenFedLLM reads its last digit only, so that its ``local12`` trains client 2.

    >>> local_client("local12"), local_client("fedavg")
    (12, None)
    """
    number = fed_alg.removeprefix(LOCAL)
    return int(number) if number != fed_alg and number.isdecimal() else None


def is_known(name: str) -> bool:
    """Whether ``name`` is a server algorithm of the registry or ``localN``."""
    return name in names("algorithm") or local_client(name) is not None


def check_fed_alg(name: str) -> None:
    """Accept a server algorithm or ``localN``.

    Raises:
        UserError: any other name, with the nearest one.
    """
    if is_known(name):
        return
    known = names("algorithm")
    choices = f"{', '.join(known)}, or local0, local1, ... (that client alone)"
    raise UserError(f"--fed_alg {name!r} is unknown; choose one of {choices}.{did_you_mean(name, known)}")
