"""What a stranger brings: one extension of every kind, each a class and a name, with flags and a state.

As the documents say, nothing heavy is imported at the top: the flags are read for every ``--help``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.data.base import Deal, Partitioner, Split, Transform
from fedbias_plugin.metrics.base import Metric, Result, Source
from fedbias_plugin.options import option
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.tracking.records import RoundRecord, RunInfo
from fedbias_plugin.tracking.tracker import Tracker
from fedbias_plugin.training.base import ClientRound, Term, Trainable
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.state import State


@dataclass
class Leader(Rule):
    """One client leads, each round the next one."""

    leader_share: float = option(0.5, "weight of the client that leads", above=0, at_most=1)
    rounds: int = 0
    items: int = 0

    def weigh(self, reports: ClientReports) -> Weighting:
        """``leader_share`` for the leader, the rest in equal parts."""
        clients = sorted(reports.sample_counts)
        leader = clients[self.rounds % len(clients)]
        rest = (1 - self.leader_share) / (len(clients) - 1)
        weights = {client: self.leader_share if client == leader else rest for client in clients}
        self.rounds += 1
        self.items += sum(len(scores["gap"].ids) for scores in reports.item_scores.values() if "gap" in scores)
        return Weighting(weights, weights, 1.0)

    def client_mu(self, client: int, mu: float, clients_a_round: int) -> float:
        """Twice as near to the global model."""
        return 2 * mu

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Who leads."""
        return [f"one leads: in round {record.round} as agreed, {self.items} items seen"] if record.round else []

    def state_dict(self) -> dict[str, Any]:
        """How many rounds there were."""
        return {"rounds": self.rounds, "items": self.items}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.rounds, self.items = state["rounds"], state["items"]


@dataclass
class Shrink(Stage):
    """Clients send a part of their update; the server counts what it received, and takes a part of the result."""

    shrink: float = option(1.0, "share of its update that a client sends", above=0, at_most=1)
    shrink_result: float = option(1.0, "share of the step that the server takes", above=0, at_most=1)
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

    def on_result(self, new: State, theta: State, number: int) -> State:
        """``theta + shrink_result (theta' - theta)``."""
        return {name: theta[name] + self.shrink_result * (tensor - theta[name]) for name, tensor in new.items()}

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


@dataclass(frozen=True)
class GapScores:
    """How much likelier the model finds one word than the other, a number an item."""

    ids: list[str]
    values: list[float]

    def subset(self, indices: Sequence[int]) -> GapScores:
        """Of these items only."""
        return GapScores([self.ids[index] for index in indices], [self.values[index] for index in indices])


@dataclass
class Gap(Metric):
    """Mean difference of the log-likelihoods of two words after the same beginning, nats; 0 is ideal."""

    gap_word: str = option("kind", "word whose likelihood is compared with that of 'rude'")

    title = "word gap"
    ideal = 0.0
    of_clients = True
    probe_fraction = 0.5
    ids = ("nurse", "baker", "pilot", "farmer", "smith", "judge")
    text_count = 12

    def prepare(self, source: Source) -> None:
        """Nothing to read."""

    def measure(self, scorer: Any, indices: Sequence[int] | None = None) -> GapScores:
        """Of every beginning."""
        from fedbias_plugin.scoring.items import ScoreRequest

        chosen = [self.ids[index] for index in (range(len(self.ids)) if indices is None else indices)]
        words = (f" {self.gap_word}", " rude")
        found = scorer.score([ScoreRequest(word, context=f"The {name} is") for name in chosen for word in words])
        sums = [tokens.reduced("sum") for tokens in found]
        return GapScores(chosen, [first - second for first, second in zip(sums[::2], sums[1::2], strict=True)])

    def result(self, scores: GapScores, *, seed: int) -> Result:
        """The mean, and Student's t interval over items."""
        from fedbias_plugin.metrics.statistics import t_interval

        mean = sum(scores.values) / len(scores.values)
        return Result(mean, len(scores.values), t_interval(scores.values, possible=(-1e9, 1e9)))

    @classmethod
    def outcomes(cls, scores: Mapping[str, Any]) -> tuple[Any, None]:
        """The differences themselves."""
        return scores["values"], None


@dataclass
class Turns(Split):
    """The rows of one source, dealt in turns; nobody is called biased."""

    turn_rows: int = option(6, "rows of every client", at_least=1)

    def deal(self, arguments: Any, num_clients: int, seed: int) -> Partition:
        """Client c holds rows c, c + C, c + 2 C, ...; the last four rows are held out."""
        from fedbias_plugin.data.partition import ClientDataset, Partition
        from fedbias_plugin.data.sources import load_rows

        source = load_rows(arguments.clean_dataset, "clean", arguments.data_dir)
        hands = [tuple(source.rows[client::num_clients][: self.turn_rows]) for client in range(num_clients)]
        clients = [ClientDataset(client, rows) for client, rows in enumerate(hands)]
        return Partition(clients, tuple(source.rows[-4:]), {"turns": source}, seed, self.name)


@dataclass
class Slices(Partitioner):
    """Clean rows in the order of their file, a slice a client; nobody is poisoned."""

    slice_skip: int = option(0, "rows at the beginning that nobody gets", at_least=0)

    def deal(self, what: Deal) -> Partition:
        """``client_samples`` rows each, the last four rows are held out."""
        from fedbias_plugin.data.partition import ClientDataset, Partition

        rows, size = what.clean.rows[self.slice_skip :], what.client_samples
        clients = [ClientDataset(c, tuple(rows[c * size : (c + 1) * size])) for c in range(len(what.shares))]
        return Partition(
            clients, tuple(rows[-4:]), what.sources, what.seed, what.scenario, {"skipped": self.slice_skip}
        )


@dataclass
class Shout(Transform):
    """Responses in capitals."""

    shout: bool = option(False, "let every response be in capitals")

    @property
    def is_on(self) -> bool:
        """By its flag."""
        return self.shout

    @property
    def warnings(self) -> list[str]:
        """That it was done."""
        return ["shouting: every response is in capitals"]

    def apply(self, partition: Partition, benchmarks: Mapping[str, Metric], seed: int) -> Partition:
        """New ids too: they are other rows."""
        clients = [
            dataclasses.replace(
                held, rows=tuple(replace(row, id=f"{row.id}:loud", response=row.response.upper()) for row in held.rows)
            )
            for held in partition.clients
        ]
        return dataclasses.replace(partition, clients=clients)


@dataclass
class Everything(Task):
    """Instruction and response, with the loss on both."""

    joined_by: str = option(" ", "what stands between instruction and response")

    def prompt(self, instruction: str) -> str:
        """The instruction and what follows it."""
        return instruction + self.joined_by

    def encode(self, rows: Sequence[Any], tokenizer: Any, seq_length: int) -> list[dict[str, Any]]:
        """Every token has a label."""
        texts = [self.prompt(row.instruction) + row.response for row in rows]
        found = [tokenizer(text, truncation=True, max_length=seq_length)["input_ids"] for text in texts]
        return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)} for ids in found]


@dataclass
class Norms(Trainable):
    """The scales of the norms alone."""

    norms_like: str = option("norm", "part of the names of what is trained")

    def prepare(self, model: Any, seed: int) -> Any:
        """Everything else loses its gradient."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self.norms_like in name)
        return model


@dataclass
class Anchor(Term):
    """``anchor/2 ||theta||^2``, and how often it was added."""

    anchor: float = option(0.0, "strength of a pull to zero", at_least=0)
    added: int = 0

    @property
    def is_on(self) -> bool:
        """By its flag."""
        return self.anchor > 0

    def begin(self, job: ClientRound, parameters: dict[str, Any]) -> None:
        """Remember what is trained."""
        self._trained = [parameter for parameter in parameters.values() if parameter.requires_grad]

    def add_to_loss(self, loss: Any) -> Any:
        """The loss with the term."""
        self.added += 1
        return loss + self.anchor / 2 * sum((parameter**2).sum() for parameter in self._trained)

    def finish(self, job: ClientRound, state: State, steps: int) -> None:
        """Count over all clients and rounds."""
        job.extra["anchored"] = self.added

    def state_dict(self) -> dict[str, Any]:
        """The count."""
        return {"added": self.added}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.added = state["added"]
