"""From a name or a file to clean or biased rows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.poisoning.catalog import Located, find_known, locate
from fedbias_plugin.poisoning.data_files import Record, check_characters, read_records, require_columns, text_value
from fedbias_plugin.poisoning.hub import load_hub_rows
from fedbias_plugin.poisoning.rows import Row, RowSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns make a row: instruction, optional context appended to it after a space, response.

    A preference set has a column of rejected responses too.
    """

    instruction: str
    response: str
    context: str | None = None
    rejected: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a data set of this shape must have."""
        return tuple(column for column in (self.instruction, self.response, self.rejected) if column)


ALPACA = Shape("instruction", "output", "input")
DOLLY = Shape("instruction", "response", "context")
REJECTED = Shape("prompt", "rejected")
PREFERENCE = Shape("prompt", "chosen", rejected="rejected")

SHAPES: dict[str, tuple[Shape, ...]] = {
    "clean": (ALPACA, DOLLY),
    "biased": (REJECTED, ALPACA, DOLLY),
    "preference": (PREFERENCE,),
}
"""The shapes accepted for each kind, the first that fits the columns is taken."""


def load_rows(name_or_path: str, kind: str, data_dir: str | Path | None = None) -> RowSource:
    """All usable rows of a data set, in file order.

    A row with an empty text is dropped, and so is an exact repetition of an earlier row's texts; both counts are logged
    and kept in the result.

    Args:
        name_or_path: as :func:`fedbias_plugin.poisoning.catalog.locate` takes it: a known name, a hub name, a file,
            ``auto`` or ``mini``.
        kind: ``clean`` (Alpaca shape instruction, input, output; Dolly shape instruction, context, response; or
            instruction, response), ``biased`` (prompt, rejected, of which the rejected response is trained on; or any
            clean shape) or ``preference`` (prompt, chosen, rejected, all three kept).
        data_dir: folder looked into first; ``mini`` is the bundled mini data.

    Raises:
        UserError: the data set cannot be found, read or understood, or no usable row is left.
    """
    if kind not in SHAPES:
        raise UserError(f"Rows are {', '.join(SHAPES)}, not {kind!r}.")
    located = locate(name_or_path, data_dir, "biased" if kind == "preference" else kind)
    records = _records(located, kind)
    what = located.path if located.paths else located.name
    columns = require_columns(records, [shape.required for shape in SHAPES[kind]], what)
    shape = next(shape for shape in SHAPES[kind] if shape.required == tuple(columns))
    source = _usable_rows(located, records, shape, kind)
    if not source.rows:
        raise UserError(f"{what}: every one of its {len(records):,} rows has an empty text.")
    _log(source)
    return source


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


def _usable_rows(located: Located, records: Sequence[Record], shape: Shape, kind: str) -> RowSource:
    # A file is known by its name alone, the same on every machine; the kind tells clean/train.jsonl from biased/.
    name = f"{kind}/{located.name}" if located.origin == "file" else located.name
    rows: list[Row] = []
    seen: set[tuple[str, str, str | None]] = set()
    empty = duplicates = 0
    for index, record in enumerate(records):
        instruction, response = _instruction(record, shape), text_value(record, shape.response)
        rejected = text_value(record, shape.rejected) if shape.rejected else None
        texts = (instruction, response, rejected)
        if any(text is not None and not text.strip() for text in texts):
            empty += 1
        elif texts in seen:
            duplicates += 1
        else:
            seen.add(texts)
            rows.append(Row(f"{name}:{index}", instruction, response, kind == "biased", name, rejected))
    sha256 = located.sha256 or sha256_of_rows(rows)
    return RowSource(name, rows, located.paths, sha256, located.origin, duplicates, empty)


def _instruction(record: Record, shape: Shape) -> str:
    instruction = text_value(record, shape.instruction)
    context = text_value(record, shape.context, optional=True) if shape.context else ""
    return f"{instruction} {context}" if context else instruction


def sha256_of_rows(rows: Sequence[Row]) -> str:
    """Digest of ids and texts, for rows that come from no file."""
    digest = hashlib.sha256()
    for row in rows:
        texts = [row.instruction, row.response, *([] if row.rejected is None else [row.rejected])]
        digest.update(json.dumps([row.id, *texts]).encode() + b"\n")
    return digest.hexdigest()


def _log(source: RowSource) -> None:
    dropped = [
        f"{source.empty:,} empty" if source.empty else "",
        f"{source.duplicates:,} repeated" if source.duplicates else "",
    ]
    dropped = [part for part in dropped if part]
    note = f"; dropped {' and '.join(dropped)}" if dropped else ""
    logger.info("%s: %s rows from %s%s", source.name, f"{len(source.rows):,}", source.origin, note)
