"""The plugin's line in a script: where it goes, and how it is found again after editors and formatters."""

from __future__ import annotations

import ast
import codecs
import io
import tokenize
import warnings

PACKAGE = "fedbias_plugin.hosts.openfedllm"
EXTENDED = "extend_arguments"
"""What config.py was given to call before the plugin needed one line only."""


def parse(data: bytes) -> ast.Module:
    """The script as a syntax tree.

    Raises:
        SyntaxError: it is not Python, or its bytes are not text in the encoding it declares.
    """
    try:
        data.decode(tokenize.detect_encoding(io.BytesIO(data).readline)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape such as "\\d" is the script's business
            return ast.parse(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise error if isinstance(error, SyntaxError) else SyntaxError(str(error) or type(error).__name__) from error


def with_line(data: bytes, line: str) -> bytes:
    """``data`` with ``line`` as its first statement, below a docstring and ``from __future__`` imports.

    Every other byte stays; the line ends as the script's lines do.

    Raises:
        SyntaxError: the script cannot be read, or the place is in the middle of a line.
    """
    bom, lines = _split(data)
    body = parse(data).body
    head = [node for index, node in enumerate(body) if _stays_first(node, index)]
    rest = body[len(head) :]
    end = next((found[len(found.rstrip(b"\r\n")) :] for found in lines if found.endswith((b"\n", b"\r"))), b"\n")
    first = [node.lineno for node in (*rest[:1], *(getattr(rest[0], "decorator_list", ()) if rest else ()))]
    index = min(first) - 1 if first else len(lines)
    if head and index < (head[-1].end_lineno or 0):
        raise SyntaxError("two statements in one line where the plugin's line belongs", (None, index + 1, None, None))
    if index == len(lines) and lines and not lines[-1].endswith((b"\n", b"\r")):
        lines[-1] += end
    lines.insert(index, line.encode("ascii") + end)
    return bom + b"".join(lines)


def without_plugin(data: bytes, *, only_old: bool = False) -> tuple[bytes, list[tuple[int, str]]]:
    """``data`` without what any version of the plugin added, however it is laid out now.

    Args:
        data: the script.
        only_old: leave today's line where it is.

    Returns:
        the other bytes, and (number from 1, text) of every line that is gone.

    Raises:
        SyntaxError: the plugin's statements share a line with others, or the script cannot be read; the message names
            the lines.
    """
    if PACKAGE.encode() not in data and EXTENDED.encode() not in data:
        return data, []
    bom, lines = _split(data)
    try:
        tree = parse(data)
    except SyntaxError as error:
        raise SyntaxError(f"Python cannot read it ({error.msg}); by hand, take out {_named(lines)}") from error
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and is_plugin(node)]
    ours = [node for node in ours if not only_old or not _is_todays(node)]
    gone = {number for node in ours for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    if not gone:
        return data, []
    kept = bom + b"".join(text for number, text in enumerate(lines, 1) if number not in gone)
    foreign = [
        alias for node in ours if isinstance(node, ast.Import) for alias in node.names if not _is_ours(alias.name)
    ]
    if foreign or not _differs_by(tree, ours, kept):
        raise SyntaxError(f"the plugin's statement shares a line, or stands alone in a block: take out {_named(lines)}")
    return kept, [(number, lines[number - 1].decode("utf-8", "replace").strip()) for number in sorted(gone)]


def is_plugin(node: ast.stmt) -> bool:
    """Whether a statement is one that a version of the plugin writes."""
    if isinstance(node, ast.Import):
        return any(_is_ours(alias.name) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return _is_ours(node.module or "")
    called = node.value.func if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == EXTENDED


def _is_todays(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import) and [alias.name for alias in node.names] == [f"{PACKAGE}.attach"]


def _is_ours(module: str) -> bool:
    return module.startswith(f"{PACKAGE}.")


def _stays_first(node: ast.stmt, index: int) -> bool:
    docstring = index == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__")


def _split(data: bytes) -> tuple[bytes, list[bytes]]:
    """The byte order mark, if any, and the lines with their ends."""
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return bom, data[len(bom) :].splitlines(keepends=True)


def _named(lines: list[bytes]) -> str:
    """The lines that hold a trace of the plugin, as a message names them."""
    marks = (PACKAGE.encode(), EXTENDED.encode())
    found = [str(number) for number, text in enumerate(lines, 1) if any(mark in text for mark in marks)]
    return f"line {', '.join(found)}"


def _differs_by(tree: ast.Module, ours: list[ast.stmt], kept: bytes) -> bool:
    """Whether ``kept`` is the script of ``tree`` without the statements ``ours``, and nothing else."""
    taken = set(map(id, ours))
    for node in list(ast.walk(tree)):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, name, [part for part in value if id(part) not in taken])
    try:
        return ast.dump(parse(kept)) == ast.dump(tree)
    except SyntaxError:
        return False
