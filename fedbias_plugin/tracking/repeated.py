"""Warnings of many rounds, each said once: which there were, in which rounds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedbias_plugin.tracking.records import RoundRecord


@dataclass(frozen=True)
class RepeatedWarning:
    """One kind of warning.

    Attributes:
        text: as it was said the last time.
        rounds: in which it was said, ascending.
    """

    text: str
    rounds: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.text} ({round_spans(self.rounds)})"


def warning_head(text: str) -> str:
    """What a warning is about: its words before the first colon, or all of them.

    >>> warning_head("lambda too small: the weights do nothing.")
    'lambda too small'
    """
    return text.split(": ", maxsplit=1)[0]


def warning_kind(text: str) -> str:
    """What warnings have in common that differ in their numbers only: the head, without its numbers.

    >>> warning_kind("LMS is 54.9, below 60: hardly any sense.")
    'LMS is #, below #'
    """
    return re.sub(r"\d+(\.\d+)?", "#", warning_head(text))


def repeated_warnings(history: Iterable[RoundRecord]) -> list[RepeatedWarning]:
    """Every kind of warning once, in the order in which they first occurred."""
    found: dict[str, RepeatedWarning] = {}
    for record in history:
        for text in record.warnings:
            kind = warning_kind(text)
            earlier = found[kind].rounds if kind in found else ()
            rounds = earlier if record.round in earlier else (*earlier, record.round)
            found[kind] = RepeatedWarning(text, rounds)
    return list(found.values())


def round_spans(rounds: Sequence[int]) -> str:
    """Round numbers as short text.

    >>> round_spans([0, 1, 2, 5])
    'rounds 0-2, 5'
    >>> round_spans([3])
    'round 3'
    """
    spans: list[list[int]] = []
    for number in rounds:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    parts = [str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans]
    return f"round{'s' if len(rounds) > 1 else ''} {', '.join(parts)}"
