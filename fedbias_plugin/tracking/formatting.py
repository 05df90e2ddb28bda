"""Numbers of a record as short text, the same in the console, in ``fedbias compare`` and in logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.scales import LOWEST_LMS
from fedbias_plugin.tracking.records import ClientRecord

MISSING = "–"
ITEM_NAMES = {"report": "report items", "full": "all items", "probe": "probe items"}


def number(value: float | None, digits: int = 2) -> str:
    """``value`` with ``digits`` decimals, or a dash for None."""
    return MISSING if value is None else f"{value:.{digits}f}"


def interval(bounds: Any, digits: int = 1) -> str:
    """A 95% interval as ``[47.2, 53.1]``, or nothing when there is none."""
    if not bounds or any(bound is None for bound in bounds):
        return ""
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def with_interval(value: float | None, bounds: Any, digits: int = 1) -> str:
    """A value and its interval: ``50.1 [47.2, 53.1]``."""
    return f"{number(value, digits)} {interval(bounds, digits)}".rstrip()


def percent(share: float | None) -> str:
    """A share of 1 as whole percent."""
    return MISSING if share is None else f"{100 * share:.0f}%"


def bias_noise(client: ClientRecord, alpha: float) -> float | None:
    """Expected bias score of an unbiased model on the client's items, percentage points (METRICS section 5).

    ``alpha`` times the sum of the benchmarks' noise floors, as in eq. 1; None when neither states one. That of
    StereoSet is from the spread over the client's target terms.
    """
    floors = [(block or {}).get("noise_floor") for block in (client.crows_pairs, client.stereoset)]
    known = [floor for floor in floors if floor is not None]
    return alpha * sum(known) if known else None


def item_note(block: Mapping[str, Any]) -> str:
    """Which items a global score is of, and how many: ``report items, n=1131``; StereoSet's terms too."""
    parts = [ITEM_NAMES.get(block.get("items", ""), "items")]
    parts += [f"n={block['n']}"] if block.get("n") is not None else []
    return ", ".join([*parts, *filter(None, [term_note(block)])])


def term_note(block: Mapping[str, Any]) -> str:
    """Over how many target terms an SS is the mean: ``12 terms``; nothing for CrowS-Pairs and older records."""
    terms = block.get("terms")
    if terms is None:
        return ""
    return f"{terms} term{'' if terms == 1 else 's'}{'' if block.get('ci95') else ', too few for an interval'}"


def length_note(block: Mapping[str, Any]) -> str:
    """What "fewer tokens wins" scores on the same pairs: ``length alone: 42.7``; nothing for older records."""
    if block.get("reduction") == "matched":
        return "pairs of equal length"
    value = block.get("length_only")
    return "" if value is None else f"length alone: {number(value, 1)}"


def is_incoherent(block: Mapping[str, Any]) -> bool:
    """Whether the LMS of a StereoSet result is too low for its SS to mean anything (METRICS section 3)."""
    lms = block.get("lms")
    return lms is not None and lms < LOWEST_LMS
