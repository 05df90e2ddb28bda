"""Which columns make a row: ours in any capitalisation, or those that ``--columns`` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedbias_plugin.data.chats import prompt_and_answer
from fedbias_plugin.data.data_files import Record, listed, text_value
from fedbias_plugin.errors import UserError, did_you_mean, quoted
from fedbias_plugin.options import split_list

LONGEST_LABEL = 100
"""Characters; a longer text in a further column is no label."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns make a row: instruction, optional context appended to it after a space, response; or a chat.

    A preference set has a column of rejected responses too.
    """

    instruction: str = ""
    response: str = ""
    context: str = ""
    rejected: str = ""
    chat: str = ""

    @property
    def required(self) -> tuple[str, ...]:
        """The columns a data set of this shape must have."""
        return tuple(filter(None, (self.instruction, self.response, self.rejected, self.chat)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it may have."""
        return (*self.required, self.context) if self.context else self.required

    def found_in(self, columns: Iterable[str], names: Mapping[str, str], where: str) -> Shape | None:
        """The shape with the data set's own names of its columns; None where the data set lacks one.

        Args:
            columns: of the data set.
            names: column of ours -> of the data set, where they differ.
            where: the data set, for errors.

        Raises:
            UserError: two columns differ in capitalisation alone.
        """
        found = {ours: _find(names.get(ours, ours), columns, where) for ours in self.columns}
        if not all(found[ours] for ours in {*self.required, *names}):
            return None
        parts = {part: getattr(self, part) for part in self.__slots__}
        return replace(self, **{part: found[ours] or ours for part, ours in parts.items() if ours})

    def texts(self, record: Record) -> tuple[str, str, str | None]:
        """Instruction, response and rejected response of a row; an empty text where there is none.

        Raises:
            UserError: a column is absent from the row, or holds something else than text; the row is named.
        """
        if self.chat:
            return (*prompt_and_answer(record, self.chat), None)
        instruction, response = text_value(record, self.instruction), text_value(record, self.response)
        context = text_value(record, self.context, optional=True) if self.context else ""
        rejected = text_value(record, self.rejected) if self.rejected else None
        return f"{instruction} {context}" if context else instruction, response, rejected

    def labels(self, values: Mapping[str, Any]) -> dict[str, str]:
        """The further columns of a row that hold a whole number or a short text, as text."""
        return {
            column: str(value)
            for column, value in values.items()
            if column not in self.columns and _folded(column) not in TEXTS
            if isinstance(value, (str, int)) and 0 < len(str(value)) <= LONGEST_LABEL
        }


REJECTED = Shape("prompt", "rejected")
PREFERENCE = Shape("prompt", "chosen", rejected="rejected")
CLEAN = (
    Shape("instruction", "output", "input"),
    Shape("instruction", "response", "context"),
    Shape("question", "answer", "context"),
    Shape("prompt", "completion"),
    Shape("prompt", "response"),
    Shape(chat="messages"),
    Shape(chat="conversations"),
)
SHAPES: dict[str, tuple[Shape, ...]] = {"clean": CLEAN, "biased": (REJECTED, *CLEAN), "preference": (PREFERENCE,)}
"""The shapes accepted for each kind, the first that fits the columns is taken."""
TEXTS = frozenset(column for shapes in SHAPES.values() for shape in shapes for column in shape.columns)
"""The columns of all shapes: no labels, whichever shape a file has."""


def find_shape(records: Sequence[Record], kind: str, names: Mapping[str, str], where: str) -> tuple[Shape, bool]:
    """The shape of a data set under its own names, told by its first row, and whether it has the columns of ``names``.

    One that lacks a column of ``names`` is read by the columns of ours.

    Raises:
        UserError: none fits; the message lists the columns found and wanted.
    """
    found = tuple(records[0].values)
    if names:
        fitting = (shape.found_in(found, names, where) for shape in SHAPES[kind] if names.keys() <= {*shape.columns})
        if shape := next(filter(None, fitting), None):
            return shape, True
    if shape := next(filter(None, (shape.found_in(found, {}, where) for shape in SHAPES[kind])), None):
        return shape, False
    choices = " or ".join(", ".join(shape.required) for shape in SHAPES[kind])
    advice = "those that --columns names" if names else "name yours, such as --columns instruction=TASK,output=ANSWER"
    raise UserError(f"{where}: the columns are {listed(found)}; wanted are {choices}, or {advice}.")


def labelled_shape(records: Sequence[Record], fields: tuple[str, str], where: str) -> Shape:
    """The shape of rows whose label is to be told from a text: the text is the instruction, the label the response.

    Args:
        records: of the data set; numbers in the column of the label become text here.
        fields: what ``--text_field`` and ``--label_field`` name.
        where: the data set, for errors.

    Raises:
        UserError: a column is missing; those found are named.
    """
    found = tuple(records[0].values)
    text, label = (_find(wanted, found, where) for wanted in fields)
    for flag, wanted, column in (("text_field", fields[0], text), ("label_field", fields[1], label)):
        if not column:
            raise UserError(
                f"{where}: --{flag} {quoted(wanted)} is no column of it; found {listed(found)}."
                f"{did_you_mean(wanted, found)}"
            )
    if text == label:
        raise UserError(f"--text_field and --label_field both name the column {quoted(text)}.")
    for record in records:
        if isinstance(record.values.get(label), int):
            record.values[label] = str(record.values[label])
    return Shape(text, label)


def parse_columns(text: str | None) -> dict[str, str]:
    """``"instruction=question,output=answer"`` -> column of ours -> of the data set.

    Raises:
        UserError: it is not written like that, or no row has these columns of ours together.
    """
    names: dict[str, str] = {}
    for part in split_list(text or ""):
        ours, _, theirs = (word.strip() for word in part.partition("="))
        if not theirs or ours in names:
            raise UserError(f"--columns {quoted(text)} must be pairs such as instruction=question,output=answer.")
        if ours not in TEXTS:
            known = sorted(TEXTS)
            hint = did_you_mean(ours, known)
            raise UserError(f"--columns: {quoted(ours)} is no column of ours; these are: {', '.join(known)}.{hint}")
        names[ours] = theirs
    if not any(names.keys() <= {*shape.columns} for shapes in SHAPES.values() for shape in shapes):
        together = "; ".join(", ".join(shape.columns) for shape in (*CLEAN, PREFERENCE))
        raise UserError(f"--columns: no row has {' and '.join(names)} together. What goes together: {together}.")
    return names


def _find(wanted: str, columns: Iterable[str], where: str) -> str:
    """``wanted`` as the data set writes it, or an empty text where it has no such column."""
    if wanted in columns:
        return wanted
    near = [column for column in columns if _folded(column) == _folded(wanted)]
    if len(near) > 1:
        raise UserError(f"{where}: {listed(near)} differ in capitalisation alone; which is {quoted(wanted)}?")
    return near[0] if near else ""


def _folded(column: str) -> str:
    return column.strip().lower()
