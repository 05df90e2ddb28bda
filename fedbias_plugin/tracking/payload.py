"""The bytes of a round by definition of the method, as records and studies hold them (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.tracking.read_json import read_integer, read_object

SIDES = ("sent", "received")
TOTALS = ("sent_total", "received_total")


def read_sides(data: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Bytes by what, sent and received."""
    found = {side: read_object(data, side) for side in SIDES}
    return {side: {what: read_integer(one, what) for what in one} for side, one in found.items() if one is not None}


def read_payload(data: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a round, with the totals up to it."""
    totals = {key: read_integer(data, key) for key in TOTALS if key in data}
    return {**read_sides(data), **totals}


def payload_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Bytes of a round: sent and received, each by what, and up to the round; ``payload/total`` is both together."""
    sides = {side: found[side] for side in SIDES if side in found}
    numbers: dict[str, float] = {f"payload/{side}": sum(own.values()) for side, own in sides.items()}
    numbers |= {f"payload/{side}/{what}": size for side, own in sides.items() for what, size in own.items()}
    totals = {f"payload/{key}": found[key] for key in TOTALS if key in found}
    return numbers | totals | ({"payload/total": sum(totals.values())} if totals else {})
