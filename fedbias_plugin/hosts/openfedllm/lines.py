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
    end = next((found[len(found.rstrip(b"\r\n")) :] for found in lines if found.endswith((b"\n", b"\r"))), b"\n")
    last, index = 0, len(lines)  # the last line that stays above, and the place below it
    for number, node in enumerate(parse(data).body):
        is_docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not is_docstring and not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            index = min(part.lineno for part in (node, *getattr(node, "decorator_list", ()))) - 1
            break
        last = node.end_lineno or node.lineno
    if index < last:
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
    bom, lines = _split(data)
    traces = [n for n, text in enumerate(lines, 1) if PACKAGE.encode() in text or EXTENDED.encode() in text]
    if not traces:
        return data, []
    named = f"line {', '.join(map(str, traces))}"
    try:
        tree = parse(data)
    except SyntaxError as error:
        raise SyntaxError(f"Python cannot read it ({error.msg}); by hand, take out {named}") from error
    ours = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and _is_plugin(node)]
    if only_old:
        ours = [node for node in ours if not isinstance(node, ast.Import) or _imports(node) != [f"{PACKAGE}.attach"]]
    gone = {number for node in ours for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    if not gone:
        return data, []
    kept = bom + b"".join(text for number, text in enumerate(lines, 1) if number not in gone)
    imported = [name for node in ours if isinstance(node, ast.Import) for name in _imports(node)]
    if not all(_is_ours(name) for name in imported) or not _differs_by(tree, ours, kept):
        raise SyntaxError(f"the plugin's statement shares a line, or stands alone in a block: take out {named}")
    return kept, [(number, lines[number - 1].decode("utf-8", "replace").strip()) for number in sorted(gone)]


def _split(data: bytes) -> tuple[bytes, list[bytes]]:
    """The byte order mark, if any, and the lines with their ends."""
    bom = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
    return bom, data[len(bom) :].splitlines(keepends=True)


def _is_plugin(node: ast.stmt) -> bool:
    """Whether a statement is one that a version of the plugin writes."""
    if isinstance(node, ast.Import):
        return any(map(_is_ours, _imports(node)))
    if isinstance(node, ast.ImportFrom):
        return _is_ours(node.module or "")
    called = node.value.func if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) else None
    return isinstance(called, ast.Name) and called.id == EXTENDED


def _imports(node: ast.Import) -> list[str]:
    return [alias.name for alias in node.names]


def _is_ours(module: str) -> bool:
    return module.startswith(f"{PACKAGE}.")


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
