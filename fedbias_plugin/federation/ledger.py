"""The bytes that a round costs by definition: what a client must be sent and must send, by what it is.

It is the method's cost, the same on every host, whatever a simulation moves; what travelled between machines is counted
by the host that has them (docs/flower.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.fed_algs import local_client
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.federation.state_store import state_bytes
from fedbias_plugin.state import State
from fedbias_plugin.tracking.payload import SIDES
from fedbias_plugin.tracking.records import ClientRecord
from fedbias_plugin.updates.base import Update


def is_federated(run: HostRun) -> bool:
    """Whether anything travels: not where one client trains alone, or all rows are in one place."""
    return run.num_clients > 1 and local_client(run.fed_alg) is None


def state_name(model: Any) -> str:
    """What a state of the live ``model`` is called: its adapter, or the whole model."""
    return "adapter" if hasattr(model, "peft_config") else "model"


def payload_of(update: Update, theta: State, name: str) -> dict[str, dict[str, int]]:
    """``sent`` and ``received`` -> what -> bytes, of one client in a round, as the update was sent.

    Args:
        update: after the client half of every stage.
        theta: the global state, which the client was sent whole.
        name: of a state, see :func:`state_name`.
    """
    own = {name: state_bytes(update.state)} if update.payload is None else dict(update.payload)
    beside = {what: state_bytes(part) for what, part in update.sent.items()}
    return {"sent": own | beside, "received": {name: state_bytes(theta)} | update.received}


class Ledger:
    """The sums of a run."""

    def __init__(self) -> None:
        self._totals = dict.fromkeys(SIDES, 0)

    def add(self, clients: Mapping[int, ClientRecord]) -> dict[str, Any]:
        """A round as its record has it: by what over all clients, and the totals up to it; empty where nobody sent."""
        found: dict[str, Any] = {}
        for side in SIDES:
            by_what: dict[str, int] = {}
            for record in clients.values():
                for what, size in record.payload.get(side, {}).items():
                    by_what[what] = by_what.get(what, 0) + size
            self._totals[side] += sum(by_what.values())
            found[side] = by_what
        if not any(self._totals.values()):
            return {}
        return found | {f"{side}_total": self._totals[side] for side in SIDES}

    def state_dict(self) -> dict[str, int]:
        """The totals."""
        return dict(self._totals)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take up what :meth:`state_dict` gave; runs of earlier versions have none."""
        self._totals |= state
