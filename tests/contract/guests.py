"""What a stranger brings: a rule, a stage and a tracker, each a class and a name, with flags and a state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.options import option
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.state import State


@dataclass
class Leader(Rule):
    """One client leads, each round the next one."""

    leader_share: float = option(0.5, "weight of the client that leads", above=0, at_most=1)
    rounds: int = 0

    def weigh(self, reports: ClientReports) -> Weighting:
        """``leader_share`` for the leader, the rest in equal parts."""
        clients = sorted(reports.sample_counts)
        leader = clients[self.rounds % len(clients)]
        rest = (1 - self.leader_share) / (len(clients) - 1)
        weights = {client: self.leader_share if client == leader else rest for client in clients}
        self.rounds += 1
        return Weighting(weights, weights, 1.0)

    def client_mu(self, client: int, mu: float, clients_a_round: int) -> float:
        """Twice as near to the global model."""
        return 2 * mu

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Who leads."""
        return [f"one leads: in round {record.round} as agreed"] if record.round else []

    def state_dict(self) -> dict[str, Any]:
        """How many rounds there were."""
        return {"rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.rounds = state["rounds"]


@dataclass
class Shrink(Stage):
    """Clients send a part of their update; the server counts what it received."""

    shrink: float = option(1.0, "share of its update that a client sends", above=0, at_most=1)
    received: int = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is left out."""
        return self.shrink != 1.0

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """``theta + shrink (theta_i - theta)``."""
        state = {name: theta[name] + self.shrink * (tensor - theta[name]) for name, tensor in update.state.items()}
        return replace(update, state=state)

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Number them all, over the rounds."""
        for update in updates.values():
            self.received += 1
            update.extra["received"] = self.received

    def state_dict(self) -> dict[str, Any]:
        """How many there were."""
        return {"received": self.received}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.received = state["received"]


@dataclass
class Tally(Tracker):
    """A line a round in a file."""

    tally_mark: str = option("|", "what stands for a round", matters="tracking")
    name = "tally"

    def start(self, run: RunInfo) -> None:
        """Remember where."""
        self.path = Path(run.output_dir) / "tally.txt"

    def log_round(self, record: RoundRecord) -> None:
        """One mark."""
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(f"{record.round} {self.tally_mark}\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Nothing to close."""
