"""The largest epsilon that a client has spent so far, of private clients (``training/dp.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.training.dp import PrivacyFlags
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.state import State


@dataclass
class DpMaximum(PrivacyFlags, Stage):
    """Beside ``dp_epsilon`` of a client every record has ``dp_epsilon_max``, over all clients and rounds until then."""

    largest: float = 0.0

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Refused updates count: they were released."""
        spent = {
            client: update.extra["dp_epsilon"] for client, update in updates.items() if "dp_epsilon" in update.extra
        }
        self.largest = max(self.largest, *spent.values(), 0.0)
        for client in spent:
            updates[client].extra["dp_epsilon_max"] = self.largest

    def state_dict(self) -> dict[str, Any]:
        """The maximum so far."""
        return {"largest": self.largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.largest = state["largest"]
