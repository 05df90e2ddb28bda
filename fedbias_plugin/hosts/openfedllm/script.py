"""A Python script as bytes: adding and removing whole lines without touching any other byte, and what its code does."""

from __future__ import annotations

import ast
import codecs
import io
import re
import tokenize
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Script:
    """The lines of a file with their ends (``\\n``, ``\\r\\n``, ``\\r`` or, in the last one, nothing).

    Indices count from 0, line numbers in messages from 1.
    """

    bom: bytes
    lines: tuple[bytes, ...]

    @classmethod
    def of(cls, data: bytes) -> Script:
        """The script in ``data``; a byte order mark is kept apart."""
        bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        return cls(bom, tuple(data[len(bom) :].splitlines(keepends=True)))

    @property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.bom + b"".join(self.lines)

    def text(self, index: int) -> bytes:
        """A line without its end."""
        return self.lines[index].rstrip(b"\r\n")

    def with_line(self, index: int, text: bytes) -> Script:
        """``text`` as a line of its own that will have ``index``, ended as its neighbour is."""
        lines = list(self.lines)
        if 0 < index == len(lines) and not self._end(index - 1):
            lines[index - 1] += self._usual_end()
            return Script(self.bom, (*lines, text))
        end = self._end(max(index - 1, 0)) if lines else b""
        lines.insert(index, text + (end or self._usual_end()))
        return Script(self.bom, tuple(lines))

    def without(self, indices: Collection[int]) -> Script:
        """The script without the lines at ``indices``: the inverse of :meth:`with_line`."""
        lines = [line for index, line in enumerate(self.lines) if index not in indices]
        last = len(self.lines) - 1
        if last in indices and lines and not self._end(last):
            lines[-1] = lines[-1].removesuffix(b"\n").removesuffix(b"\r")
        return Script(self.bom, tuple(lines))

    def first_statement(self) -> int:
        """The index below the comments that the script starts with (shebang, encoding, licence), 0 without them."""
        below = 0
        for index in range(len(self.lines)):
            text = self.text(index).strip()
            if text.startswith(b"#"):
                below = index + 1
            elif text:
                break
        return below

    def _end(self, index: int) -> bytes:
        return self.lines[index][len(self.text(index)) :]

    def _usual_end(self) -> bytes:
        return next((end for index in range(len(self.lines)) if (end := self._end(index))), b"\n")


STAR_MODULES = ("federated_learning", "utils", "peft", "transformers")
"""Where the names that the plugin replaces come from."""


class Code:
    """What the Python code of a script says.

    Raises:
        SyntaxError: it is not Python, or its bytes are not text in the encoding it declares.
    """

    def __init__(self, data: bytes) -> None:
        self.tree = _parse(data)
        self.names = {
            node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        }
        self._inside_strings = set(self._string_lines())

    def find(self, script: Script, pattern: str) -> list[int]:
        """The indices of the lines that match ``pattern`` and are not the inside of a string."""
        compiled = re.compile(pattern.encode("ascii"))
        return [
            index
            for index in range(len(script.lines))
            if compiled.search(script.text(index)) and index not in self._inside_strings
        ]

    def future_import(self) -> int | None:
        """The line number of ``from __future__ import``, or None."""
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                return node.lineno
        return None

    def bound_below(self, number: int, names: Collection[str]) -> Iterator[tuple[int, str]]:
        """Line number and name wherever one of ``names`` gets another meaning below line ``number``.

        A star import counts when it is from a module that has replaced names, as ``*``.
        """
        for node in ast.walk(self.tree):
            for name in _bound(node):
                if getattr(node, "lineno", 0) > number and (name in names or name == "*"):
                    yield getattr(node, "lineno", 0), name

    def _string_lines(self) -> Iterator[int]:
        """The indices of the lines that begin inside a string."""
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Constant, ast.JoinedStr)) and node.end_lineno is not None:
                yield from range(node.lineno, node.end_lineno)


def _parse(data: bytes) -> ast.Module:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        data.decode(encoding)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape such as "\d" is the script's business
            return ast.parse(data)
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not {error.encoding}, and no other encoding is declared"
        raise SyntaxError(message, (None, number, None, None)) from error
    except SyntaxError:
        raise
    except (ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error) or type(error).__name__) from error


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a statement or a target binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        module = (getattr(node, "module", None) or "").split(".")[0]
        for alias in node.names:
            if alias.name != "*" or module in STAR_MODULES:
                yield alias.asname or alias.name
