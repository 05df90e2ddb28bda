"""What a stranger brings: a rule with a state and a flag, and a tracker with a flag; each is a class and a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.options import option
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker


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
