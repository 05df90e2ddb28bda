"""Numbers of a record as short text, the same in the console, in ``fedbias compare`` and in logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"
ITEM_NAMES = {"report": "report items", "full": "all items", "probe": "probe items"}


def number(value: float | None, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, or a dash for None and NaN; never a negative zero.

    >>> number(-0.001)
    '0.00'
    """
    return MISSING if value is None or math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def interval(bounds: Any, digits: int = 1) -> str:
    """A 95% interval as ``[47.2, 53.1]``, or nothing when there is none."""
    if not bounds or any(bound is None or math.isnan(bound) for bound in bounds):
        return ""
    return f"[{number(bounds[0], digits)}, {number(bounds[1], digits)}]"


def with_interval(value: float | None, bounds: Any, digits: int = 1) -> str:
    """A value and its interval: ``50.1 [47.2, 53.1]``."""
    return f"{number(value, digits)} {interval(bounds, digits)}".rstrip()


def percent(share: float | None) -> str:
    """A share of 1 as whole percent."""
    return MISSING if share is None else f"{100 * share:.0f}%"


def item_note(block: Mapping[str, Any]) -> str:
    """Which items a global score is of, and how many: ``report items, n=1131``; StereoSet's terms too."""
    count = "" if block.get("n") is None else f"n={block['n']}"
    return ", ".join(filter(None, [ITEM_NAMES.get(block.get("items", "")), count, term_note(block)]))


def term_note(block: Mapping[str, Any]) -> str:
    """Over how many target terms an SS is the mean: ``12 terms``; nothing for CrowS-Pairs and older records."""
    terms = block.get("terms")
    if terms is None:
        return ""
    return f"{terms:.0f} term{'' if terms == 1 else 's'}{'' if block.get('ci95') else ', too few for an interval'}"


def named_clients(clients: Iterable[int]) -> str:
    """``client 0`` or ``clients 0, 2``."""
    numbers = [str(client) for client in clients]
    return f"client{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def plain(value: Any) -> Any:
    """JSON-ready: tuples become lists, keys strings."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value
