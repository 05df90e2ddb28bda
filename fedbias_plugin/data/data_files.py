"""Reading json, jsonl, parquet and csv files, with errors that name the file and the line.

The text of a file is UTF-8 (a byte order mark is tolerated) and is never guessed at: a byte or a character that is
not text is an error, because a silently repaired row would be a different row on another machine.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.versions import version_numbers

logger = logging.getLogger(__name__)

SUFFIXES = (".json", ".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
MOST_PARQUET_ROWS = 10_000_000
"""A parquet file of some hundred bytes can promise any number of rows."""


class Record(NamedTuple):
    """One row of a file as it stands there; ``where`` names it in messages: ``rows.jsonl, line 3``."""

    values: dict[str, Any]
    where: str


def read_records(path: Path) -> list[Record]:
    """The rows of a data file, in order, the format told by its suffix.

    A ``.json`` file holds a list of objects; one object a line is accepted there too. Rows of json and parquet files
    are counted from 1 in messages, lines of jsonl and csv files likewise.

    Raises:
        UserError: the file is absent, empty, not UTF-8, malformed, or holds a row that is not an object; the message
            names the line (and column) or the row.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: the format is told by the suffix, which must be one of {', '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        records = list(_read_parquet(path))
    elif suffix in (".csv", ".tsv"):
        records = list(_read_csv(path, read_text(path)))
    elif suffix == ".json":
        records = _read_json(path, read_text(path))
    else:
        records = list(_read_lines(path, read_text(path)))
    if not records:
        raise UserError(f"{path} holds no rows.")
    for record in records:
        check_characters(record)
    return records


def read_bytes(path: Path) -> bytes:
    """The content of a file; an absent, unreadable or empty file is a :class:`UserError`."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if not data.strip():
        raise UserError(f"{path} is empty.")
    return data


def read_text(path: Path) -> str:
    """The content of a UTF-8 file without its byte order mark.

    Raises:
        UserError: the file is absent or empty, or a byte is not UTF-8 (its line and offset are named).
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8; "
            f"save the file as UTF-8."
        ) from None
    return text.removeprefix("\ufeff")


def text_value(record: Record, column: str, *, optional: bool = False) -> str:
    """The text in ``column``; an absent or null value is the empty string where ``optional``, null always is.

    Raises:
        UserError: the column is absent from this row, or its value is not text; the row is named.
    """
    if column not in record.values:
        if optional:
            return ""
        raise UserError(f"{record.where}: the column {column!r} is missing; found {listed(record.values)}.")
    value = record.values[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{record.where}: {column!r} must be text, found {type(value).__name__} ({quoted(value)}).")
    return value


def listed(columns: Iterable[str], most: int = 12) -> str:
    """The first of the columns, quoted, and how many more there are."""
    names = [quoted(column) for column in columns]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _read_json(path: Path, text: str) -> list[Record]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and error.msg == "Extra data":
            return list(_read_lines(path, text))
        raise _malformed(path, error, error.lineno) from None
    except ValueError as error:  # an integer of more than 4,300 digits
        raise UserError(f"{path}: malformed JSON: {error}.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be a list of rows.") from None
    if not isinstance(rows, list):
        raise UserError(f"{path} must hold a list of objects, found {_kind(rows)}.")
    return [_record(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _read_lines(path: Path, text: str) -> Iterator[Record]:
    # Not str.splitlines: it also splits at characters, such as U+2028, that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise _malformed(path, error, number) from None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: malformed JSON: {error}.") from None
        except RecursionError:
            raise UserError(f"{path}, line {number}: nested too deeply to be a row.") from None
        yield _record(row, f"{path}, line {number}")


def _read_csv(path: Path, text: str) -> Iterator[Record]:
    delimiter = _delimiter(text)
    if delimiter != ",":
        logger.info("%s: the delimiter is a %s", path.name, DELIMITERS[delimiter])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
        check_distinct(header, f"{path}, line 1")
        end = reader.line_num
        for fields in reader:
            # A quoted field may hold line breaks; the row is named by the line it begins on.
            start, end = end + 1, reader.line_num
            if not fields:
                continue
            if len(fields) != len(header):
                raise UserError(f"{path}, line {start}: {len(fields)} fields, but the header has {len(header)}.")
            yield Record(dict(zip(header, fields, strict=True)), f"{path}, line {start}")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: malformed CSV: {error}.") from None


def _delimiter(text: str) -> str:
    """That of :data:`DELIMITERS` which makes most columns of the header, the comma where they make equally many."""

    def columns(delimiter: str) -> int:
        try:
            return len(next(csv.reader(io.StringIO(text[: 2**20], newline=""), delimiter=delimiter, strict=True)))
        except csv.Error:
            return 0

    return max(DELIMITERS, key=columns)


def _read_parquet(path: Path) -> Iterator[Record]:
    read_bytes(path)
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path}: parquet files need pyarrow; run: pip install pyarrow (or use json, jsonl).") from None
    forget_pickled_types(arrow)
    try:
        # Not read_table: it takes the folders' names for columns where they look like column=value.
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > MOST_PARQUET_ROWS:
                raise UserError(
                    f"{path} says it has {file.metadata.num_rows:,} rows; at most {MOST_PARQUET_ROWS:,} fit."
                )
            table = file.read()
        check_distinct(table.column_names, str(path))
        rows = table.to_pylist()
    except UserError:
        raise
    except (arrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        # ValueError and OverflowError: text that is not UTF-8, dates beyond what Python has
        raise UserError(f"{path} is not a readable parquet file: {first_line(error)}") from None
    for number, row in enumerate(rows, 1):
        yield Record(row, f"{path}, row {number}")


def forget_pickled_types(arrow: Any) -> None:
    """Before 14.0.1, pyarrow unpickled a column type that the file brought, which can run code (CVE-2023-47248)."""
    if version_numbers(arrow.__version__) < version_numbers("14.0.1"):
        with contextlib.suppress(KeyError):  # forgotten already
            arrow.unregister_extension_type("arrow.py_extension_type")


def check_distinct(columns: Iterable[str], where: str) -> None:
    """Refuse a column name that occurs twice: one of the two would be lost.

    Raises:
        UserError: naming the column and ``where`` it is.
    """
    seen: set[str] = set()
    for name in columns:
        if name in seen:
            raise UserError(f"{where}: the column {quoted(name)} occurs twice.")
        seen.add(name)


def _record(row: Any, where: str) -> Record:
    if not isinstance(row, dict):
        raise UserError(f'{where}: a row must be an object such as {{"instruction": ...}}, found {_kind(row)}.')
    return Record(row, where)


def check_characters(record: Record) -> None:
    """Refuse lone surrogates: JSON can spell them, UTF-8 cannot, and tokenizers disagree on what they are.

    Raises:
        UserError: naming the row, the column and the position.
    """
    for column, value in record.values.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                code = ord(value[error.start])
                raise UserError(
                    f"{record.where}: {quoted(column)} holds half a character (lone surrogate U+{code:04X}) at "
                    f"position {error.start}; the file was cut or converted wrongly."
                ) from None


def _malformed(path: Path, error: json.JSONDecodeError, line: int) -> UserError:
    return UserError(f"{path}, line {line}, column {error.colno}: malformed JSON: {error.msg}.")


def _kind(value: Any) -> str:
    names = {dict: "one object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
