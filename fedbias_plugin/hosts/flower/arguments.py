"""Flags that only a federation of several machines has."""

from __future__ import annotations

from dataclasses import dataclass

from fedbias_plugin.options import check_options, option

RUN_CONFIG = RESUME, CONFIG = ("resume", "config")
"""Keys of a run's configuration beside the flags: the folder of a run to go on with, and a file of flags."""


@dataclass
class FlowerArguments:
    """Nodes of a Flower federation: how long the server waits, and without how many it stops."""

    min_clients: int = option(
        2,
        "clients that a round needs (fewer where the round has fewer); with less the server waits for "
        "--node_wait seconds, then stops, and --resume goes on",
        at_least=1,
        matters="machine",
        may_change=True,
    )
    node_wait: float = option(
        300.0, "seconds to wait for nodes that are not there", above=0, matters="machine", may_change=True
    )
    round_timeout: float = option(
        7200.0,
        "seconds that clients may take for a round; it goes on without those that took longer",
        above=0,
        matters="machine",
        may_change=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
