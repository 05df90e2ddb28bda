"""The flag that rules against a known number of attackers share."""

from __future__ import annotations

from dataclasses import dataclass

from fedbias_plugin.aggregation.base import Rule
from fedbias_plugin.options import option


@dataclass
class ByzantineRule(Rule):
    """A rule that is told f, the number of attackers a round."""

    byzantine_clients: int = option(
        1,
        "f, the attackers a round that trimmed_mean, krum and multi_krum are to withstand; Krum is proved for 2f + 3 "
        "clients and more",
        at_least=0,
    )
