"""Chats as rows: ``messages`` of role and content, and ShareGPT's ``conversations`` of from and value."""

from __future__ import annotations

import json
from typing import Any

from fedbias_plugin.data.data_files import Record, check_characters, text_value
from fedbias_plugin.data.rows import Chat
from fedbias_plugin.errors import UserError, first_line, quoted

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
KEYS = (("role", "content"), ("from", "value"))


def prompt_and_answer(record: Record, column: str) -> tuple[str, str]:
    """What the assistant said last, and before it all that was said until then; later turns are left out.

    A single question is its plain text, anything else a :class:`Chat` with the system messages in front. Both are empty
    where the assistant does not answer a user.

    Raises:
        UserError: the column holds no list of turns, or a turn has no text or an unknown role; the row is named.
    """
    turns = [_turn(turn, f"{record.where}: turn {number} of {column!r}") for number, turn in _numbered(record, column)]
    last = max((place for place, (role, _) in enumerate(turns) if role == "assistant"), default=0)
    system = "\n\n".join(text for role, text in turns[:last] if role == "system")
    talk = [(role, text) for role, text in turns[:last] if role != "system"]
    if not any(role == "user" and text.strip() for role, text in talk):
        return "", ""
    prompt = [("system", system), *talk] if system.strip() else talk
    return (prompt[0][1] if len(prompt) == 1 else Chat.of(prompt)), turns[last][1]


def _numbered(record: Record, column: str) -> enumerate[Any]:
    """The turns, counted from 1; a csv file holds them as JSON."""
    turns = record.values.get(column)
    if isinstance(turns, str) or column not in record.values:
        text = text_value(record, column)
        try:
            turns = json.loads(text) if text.strip() else []
        except (ValueError, RecursionError) as error:
            raise UserError(f"{record.where}: {column!r} is no JSON list of turns: {first_line(error)}.") from None
    if turns is not None and not isinstance(turns, list):
        raise UserError(f"{record.where}: {column!r} must be a list of turns, found {quoted(turns)}.")
    return enumerate(turns or [], 1)


def _turn(turn: Any, where: str) -> tuple[str, str]:
    keys = next((keys for keys in KEYS if isinstance(turn, dict) and turn.keys() >= {*keys}), None)
    if keys is None:
        raise UserError(f"{where} must have role and content, or from and value, found {quoted(turn)}.")
    role = ROLES.get(str(turn[keys[0]]).lower())
    if role is None:
        raise UserError(f"{where} is of {quoted(turn[keys[0]])}; known are {', '.join(ROLES)}.")
    record = Record({keys[1]: turn[keys[1]]}, where)
    check_characters(record)
    return role, text_value(record, keys[1])
