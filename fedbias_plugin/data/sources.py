"""From a name, a file or a host's own data set to training rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedbias_plugin.data.catalog import Located, find_known, locate
from fedbias_plugin.data.data_files import Record, check_characters, listed, read_records
from fedbias_plugin.data.hub import load_hub_rows
from fedbias_plugin.data.known import LABELLED
from fedbias_plugin.data.rows import Chat, Row, RowSource
from fedbias_plugin.data.shapes import PREFERENCE, SHAPES, find_shape, labelled_shape, parse_columns
from fedbias_plugin.errors import UserError

logger = logging.getLogger(__name__)

_READ: ContextVar[dict[tuple[str, ...], RowSource] | None] = ContextVar("_READ", default=None)


@contextmanager
def read_once() -> Iterator[None]:
    """In this block, a data set that is asked for again is neither read nor reported again."""
    token = _READ.set({})
    try:
        yield
    finally:
        _READ.reset(token)


def load_rows(
    name_or_path: str,
    kind: str,
    data_dir: str | Path | None = None,
    columns: str | None = None,
    fields: tuple[str, str] | None = None,
) -> RowSource:
    """All usable rows of a data set, in file order.

    A row with an empty text is dropped, and so is an exact repetition of an earlier row's texts. Of rows to be
    classified those go, too, whose text stands under several labels: nobody knows which is right, and one of them may
    be trained on and another tested. The counts are logged and kept in the result.

    Args:
        name_or_path: as :func:`fedbias_plugin.data.catalog.locate` takes it: a known name, a hub name, a file,
            ``auto`` or ``mini``.
        kind: ``clean`` (such as instruction, input, output; or chats), ``biased`` (prompt, rejected, of which the
            rejected response is trained on; or as clean) or ``preference`` (prompt, chosen, rejected, all three kept).
            Further columns of numbers and short texts become labels.
        data_dir: folder looked into first; ``mini`` is the bundled mini data.
        columns: as ``--columns`` has it. Not for data sets that the plugin knows by name.
        fields: the columns of a text and of its label, where rows are to be classified: they become instruction and
            response, and the label stands among the row's labels too.

    Raises:
        UserError: the data set cannot be found, read or understood, or no usable row is left.
    """
    if kind not in SHAPES:
        raise UserError(f"Rows are {', '.join(SHAPES)}, not {kind!r}.")
    read = _READ.get()
    key = (name_or_path, kind, str(data_dir), columns or "", *(fields or ()))
    if read is not None and key in read:
        return read[key]
    wanted = LABELLED if fields and kind == "clean" else "biased" if kind == "preference" else kind
    located = locate(name_or_path, data_dir, wanted)
    names = parse_columns(columns)
    source = _usable_rows(located, _records(located, kind), kind, names, fields)
    dropped = [(source.empty, "empty"), (source.duplicates, "repeated")]
    dropped += [(source.contradicting, "whose text stands under several labels")]
    note = " and ".join(f"{count:,} {what}" for count, what in dropped if count)
    note = f"; dropped {note}" if note else ""
    chats = sum(isinstance(row.instruction, Chat) and row.instruction.has_several_turns for row in source.rows)
    if chats:
        note += f"; {chats:,} chats of several turns: trained on is the last answer, what comes before is its prompt"
    logger.info("%s: %s rows from %s%s", source.name, f"{len(source.rows):,}", source.origin, note)
    if read is not None:
        read[key] = source
    return source


def rows_of_host(examples: Iterable[Mapping[str, Any]], name: str) -> RowSource:
    """The preference rows that the host itself loaded and formatted, in its order.

    Raises:
        UserError: an example lacks prompt, chosen or rejected, or there is none.
    """
    rows = []
    for index, example in enumerate(examples):
        for column in PREFERENCE.required:
            if not isinstance(example.get(column), str):
                raise UserError(f"Row {index} of {name} has no text in the column {column!r}: it is no preference set.")
        rows.append(Row(f"{name}:{index}", example["prompt"], example["chosen"], False, name, example["rejected"]))
    if not rows:
        raise UserError(f"The preference set {name} holds no rows.")
    return RowSource(name, rows, (), sha256_of_rows(rows), "host")


def _records(located: Located, kind: str) -> list[Record]:
    if located.paths:
        return [record for path in located.paths for record in read_records(path)]
    known_as = located.name if find_known(located.name) else None
    rows = load_hub_rows(located.hub_id or located.name, f"{kind}_dataset", known_as)
    if not rows:
        raise UserError(f"The hub data set {located.name} holds no rows.")
    records = [Record(dict(row), f"{located.name}, row {number}") for number, row in enumerate(rows, 1)]
    for record in records:
        check_characters(record)
    return records


def _usable_rows(
    located: Located,
    records: Sequence[Record],
    kind: str,
    names: Mapping[str, str],
    fields: tuple[str, str] | None = None,
) -> RowSource:
    what = str(located.path if located.paths else located.name)
    is_known = located.origin != "file" and find_known(located.name) is not None
    if fields:
        shape, is_renamed = labelled_shape(records, fields, what), True
    else:
        shape, is_renamed = find_shape(records, kind, {} if is_known else names, what)
    # A file is known by its name alone, the same on every machine; the kind tells clean/train.jsonl from biased/.
    name = f"{kind}/{located.name}" if located.origin == "file" else located.name
    rows: list[Row] = []
    seen: set[tuple[str, str, str | None]] = set()
    empty = duplicates = 0
    for index, record in enumerate(records):
        instruction, response, rejected = texts = shape.texts(record)
        if any(text is not None and not text.strip() for text in texts):
            empty += 1
        elif texts in seen:
            duplicates += 1
        else:
            seen.add(texts)
            labels = shape.labels(record.values) | ({fields[1]: response} if fields else {})
            rows.append(Row(f"{name}:{index}", instruction, response, kind == "biased", name, rejected, labels))
    several = _of_several_labels(rows) if fields else set()
    kept = [row for row in rows if row.instruction not in several]
    if not kept:
        why = "a text that stands under several labels" if several else "an empty text"
        raise UserError(f"{what}: every one of its {len(records):,} rows has {why}.")
    contradicting, rows = len(rows) - len(kept), kept
    sha256 = sha256_of_rows(rows) if is_renamed or not located.sha256 else located.sha256
    passed_over = tuple(records[0].values) if names and not is_renamed else ()
    counts = duplicates, empty, contradicting
    return RowSource(name, rows, located.paths, sha256, located.origin, *counts, passed_over)


def _of_several_labels(rows: Iterable[Row]) -> set[str]:
    """The texts of more than one of these rows, which no two share with their label."""
    return {text for text, count in Counter(row.instruction for row in rows).items() if count > 1}


def check_columns_are_found(columns: str | None, *sources: RowSource) -> None:
    """Refuse ``--columns`` that none of the data sets of a run has.

    Raises:
        UserError: naming the columns found.
    """
    if columns and all(source.passed_over for source in sources):
        found = "; ".join(f"{source.name} has {listed(source.passed_over)}" for source in sources)
        raise UserError(
            f"--columns {columns}: no data set of this run has these columns, or the plugin knows its own: {found}."
        )


def sha256_of_rows(rows: Sequence[Row]) -> str:
    """Digest of ids and texts, for rows that come from no file."""
    digest = hashlib.sha256()
    for row in rows:
        texts = [row.instruction, row.response, *([] if row.rejected is None else [row.rejected])]
        digest.update(json.dumps([row.id, *texts]).encode() + b"\n")
    return digest.hexdigest()
