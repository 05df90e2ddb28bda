"""Rows dealt at random, equally many to every client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.data.base import Deal, Partitioner

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import Partition


@dataclass
class Iid(Partitioner):
    """As :func:`fedbias_plugin.data.dealing.deal_rows` deals."""

    def deal(self, what: Deal) -> Partition:
        """``--client_samples`` rows each."""
        from fedbias_plugin.data.dealing import deal_rows

        return deal_rows(
            *(what.clean, what.biased, what.shares, what.client_samples, what.seed, what.heldout, what.scenario)
        )
