"""How much of the global model's ability a client's model has kept: one that noise has destroyed looks unbiased."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fedbias_plugin.metrics.formatting import named_clients

if TYPE_CHECKING:
    from fedbias_plugin.aggregation.base import ClientReports
    from fedbias_plugin.tracking.records import RoundRecord

ABILITIES = {"stereoset": "lms", "heldout_loss": "loss"}
"""Metric -> its number for ability, the better one first: of the loss less is more."""
LOST = 0.8
"""Below this share of the global model's LMS a client is told of: of 80 it is 64, and a coin has 50."""
KEY, GATED = "ability", "gated"
"""In ``extra`` of a client: the share, and 1 where it has no weight for it."""


def kept_ability(blocks: Mapping[str, Mapping[str, Any]], of_global: Mapping[str, Mapping[str, Any]]) -> float | None:
    """``LMS_i / LMS`` on the same items, else ``loss / loss_i`` on held-out rows; None where neither is known of both.

    >>> kept_ability({"stereoset": {"lms": 50.0}}, {"stereoset": {"lms": 80.0}})
    0.625
    """
    for name, key in ABILITIES.items():
        own, common = (found.get(name, {}).get(key) for found in (blocks, of_global))
        if own is not None and common is not None:
            above, below = (own, common) if key == "lms" else (common, own)
            return float(above / below) if below else 1.0
    return None


def abilities(reports: ClientReports) -> dict[int, float]:
    """Client id -> share it has kept.

    Raises:
        ValueError: it is not known of a client, or of theta.
    """
    found = {
        client: kept_ability(reports.metrics.get(client, {}), reports.of_global) for client in reports.sample_counts
    }
    missing = sorted(client for client, share in found.items() if share is None)
    if missing:
        raise ValueError(
            f"--bama_min_ability: nobody measured LMS or held-out loss of client(s) {missing}, or of theta."
        )
    return {client: share for client, share in found.items() if share is not None}


def probe_ability(record: RoundRecord) -> dict[str, Mapping[str, Any]]:
    """The global model's StereoSet after a round on the items that clients are measured on; empty if not measured."""
    block = record.global_.metrics.get("stereoset")
    return {"stereoset": block.get("probe") or block} if block else {}


def ability_warnings(
    record: RoundRecord, least: float | None, before: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """Who has no weight below the share ``least``; where there is none, who would deserve to have none.

    ``before``: what :func:`probe_ability` gave after the last measured round before.
    """
    if least is not None:
        gated = {client: row.extra[KEY] for client, row in record.clients.items() if GATED in row.extra}
        if gated:
            named = ", ".join(f"client {client} ({100 * share:.0f}%)" for client, share in gated.items())
            alone = "; nobody is left, and nothing is learned in this round" if not _weighed(record) else ""
            yield (
                f"gated: no weight for {named}, less than {100 * least:g}% (--bama_min_ability) of the ability that "
                f"the global model had before the round{alone}."
            )
        return
    shares = {client: kept_ability(row.metrics, before) for client, row in record.clients.items() if row.weight}
    lost = {client: share for client, share in shares.items() if share is not None and share < LOST}
    if lost:
        yield (
            f"ability lost: {named_clients(lost)} ({100 * min(lost.values()):.0f}% at the least of the LMS that the "
            "global model had before). A destroyed model scores near 50, and BAMA rewards it: --bama_min_ability 0.9 "
            "gives it no weight."
        )


def _weighed(record: RoundRecord) -> bool:
    return any(row.weight for row in record.clients.values())
