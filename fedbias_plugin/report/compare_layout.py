"""Tables and bars of ``fedbias compare``, as wide as they may be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fedbias_plugin.scales import UNBIASED

HALF_BAR = 10
INDENT, GAP = 2, 3


def bar(score: float | None, *, half: int = HALF_BAR, ascii_only: bool = False) -> str:
    """A score from 0 to 100 as a bar that starts at the 50 line; ``half`` characters are 50 points.

    >>> bar(70.0)
    '··········│████······'
    >>> bar(40.0, ascii_only=True)
    '........##|..........'
    >>> bar(70.0, half=5)
    '·····│██···'
    """
    block, empty, line = ("#", ".", "|") if ascii_only else ("█", "·", "│")
    if score is None:
        return " " * (2 * half + 1)
    filled = math.floor(min(abs(score - UNBIASED), UNBIASED) / (UNBIASED / half) + 0.5)
    side = block * filled + empty * (half - filled)
    rest = empty * half
    return f"{rest}{line}{side}" if score >= UNBIASED else f"{side[::-1]}{line}{rest}"


def fits(rows: Sequence[Sequence[str]], width: int | None) -> bool:
    """Whether a table of these rows is at most ``width`` columns wide; None is as wide as anything."""
    return width is None or len(_groups(_column_widths(rows), width)) == 1


def table_lines(rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """A table, its columns lined up; one that is too wide goes on below, its first column again in front.

    >>> print("\\n".join(table_lines([["run", "round", "Delta"], ["mine", "5", "3.1"]], 14)))
      run    round
      mine   5
      run    Delta
      mine   3.1
    """
    widths = _column_widths(rows)
    for group in _groups(widths, width):
        for row in rows:
            yield " " * INDENT + (" " * GAP).join(row[column].ljust(widths[column]) for column in group).rstrip()


def _column_widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]


def _groups(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """The columns that stand beside each other, the first one in every group."""
    if width is None:
        return [list(range(len(widths)))]
    groups, room = [[0]], width - INDENT - widths[0]
    for column in range(1, len(widths)):
        needed = GAP + widths[column]
        if needed > room and len(groups[-1]) > 1:
            groups.append([0])
            room = width - INDENT - widths[0]
        groups[-1].append(column)
        room -= needed
    return groups
