"""What every extension has: flags, a name, a switch, and a state that a checkpoint keeps."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class Extension(ABC):  # noqa: B024  # each kind says what must be there
    """One class of a kind, such as a rule or a metric: its fields are its flags (``option``).

    Its file imports neither torch nor transformers at its top: the flags are read for every ``--help``.

    Attributes:
        name: what it is called in the registry; given when it is built.
        is_named: whether it is chosen by its name (``--aggregation NAME``); False where its own flags switch it on.
        takes: what stands behind its name and a colon, such as ``TASK``; empty where nothing does.
    """

    name: ClassVar[str] = ""
    is_named: ClassVar[bool] = True
    takes: ClassVar[str] = ""

    @classmethod
    def of(cls, given: str) -> type[Self]:
        """Of one that ``takes`` something: the class for what was ``given``, with the name that records have.

        Raises:
            UserError: it cannot be that.
        """
        raise NotImplementedError

    @classmethod
    def code(cls) -> str | None:
        """Hash of the file it stands in, without comments and docstrings; None where there is no such file."""
        path = getattr(sys.modules.get(cls.__module__), "__file__", None)
        return None if path is None else _code_of(Path(path))

    @property
    def is_on(self) -> bool:
        """Whether its flags ask for it, where it need not be named."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What it must know to go on after a round; a checkpoint keeps it.

        JSON-ready, with text as keys, but for states (name -> tensor on the CPU), which may stand anywhere in it.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # most remember nothing
        """Take up what :meth:`state_dict` gave."""


@functools.cache
def _code_of(path: Path) -> str | None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):  # compiled, or not there any more
        return None
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [line for line in body if not _is_text(line)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
