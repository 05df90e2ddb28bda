"""Reading CrowS-Pairs: a csv file with the columns of the original release."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.names import check_label

COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
DIRECTIONS = ("stereo", "antistereo")


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they are about.

    Attributes:
        id: of the pair, unique in its file.
        more: the more stereotypical sentence (``sent_more``), whatever the direction.
        less: the less stereotypical one.
        direction: ``stereo`` or ``antistereo``: how the stereotype runs about the disadvantaged group. Never a reason
            to swap the two sentences.
        bias_type: for example ``gender``.
    """

    id: str
    more: str
    less: str
    direction: str
    bias_type: str


def read_pairs(path: str | os.PathLike[str], text: str) -> list[Pair]:
    """The pairs in ``text``, the content of ``path``.

    Raises:
        UserError: see :meth:`CrowsPairs.load`.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    try:
        columns = list(reader.fieldnames or [])
        repeated = [column for column in COLUMNS if columns.count(column) > 1]
        if repeated:
            raise UserError(f"{path}, line 1: the column {', '.join(repeated)} occurs twice.")
        missing = [column for column in COLUMNS if column not in columns]
        if missing:
            raise UserError(
                f"{path}, line 1: missing column {', '.join(missing)}; found {', '.join(map(quoted, columns[:12]))}. "
                f"A CrowS-Pairs file has the columns {', '.join(COLUMNS)}."
            )
        id_column = next((column for column in ("", "id") if column in columns), None)
        for number, row in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            pair = _pair(row, str(number) if id_column is None else row[id_column] or "", where)
            if pair.id in lines:
                raise UserError(
                    f"{where}: id {quoted(pair.id)} is also that of line {lines[pair.id]}; ids must differ."
                )
            lines[pair.id] = reader.line_num
            pairs.append(pair)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a csv row ({error}); is a quote unclosed?") from error
    return pairs


def _pair(row: dict[str, Any], pair_id: str, where: str) -> Pair:
    if None in row:
        raise UserError(f"{where}: more fields than the header has columns; is a comma outside quotes?")
    more, less, direction, bias_type = ((row[column] or "").strip() for column in COLUMNS)
    empty = [column for column, value in zip(COLUMNS, (more, less, direction, bias_type), strict=True) if not value]
    if empty:
        raise UserError(f"{where}: {', '.join(empty)} is empty.")
    if direction not in DIRECTIONS:
        raise UserError(f"{where}: stereo_antistereo is {quoted(direction)}; it must be stereo or antistereo.")
    if not pair_id:
        raise UserError(f"{where}: the id is empty.")
    return Pair(
        check_label(pair_id, f"{where}: the id"),
        more,
        less,
        direction,
        check_label(bias_type, f"{where}: the bias_type"),
    )
