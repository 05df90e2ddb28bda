"""The global model on every client's own test rows: whom the average leaves behind (docs/metrics.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import interval, number, plain
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.tasks.base import RowScores

SECTION = "Fairness over clients"
AGGREGATES = ("worst", "best", "std", "mean_worst", "best_worst", "small_large", "jain")
"""What tables show beside the mean."""
WORDS = {
    "worst": "worst client",
    "best": "best client",
    "std": "standard deviation",
    "mean_worst": "mean minus worst",
    "best_worst": "best minus worst",
    "small_large": "small-large gap",
    "jain": "Jain's index",
}


@dataclass(frozen=True)
class SpreadResult(Result):
    """A value a client, and what they say together (:func:`fedbias_plugin.metrics.client_spread.spread`).

    Attributes:
        numbers: name -> number, or interval of one.
        clients: client id -> ``value``, ``n`` (test rows), ``ci95``, ``rows`` (n_i).
    """

    numbers: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self) -> Block:
        """The attributes, the numbers under their own names."""
        return {"value": self.value, "n": self.n, **plain({"ci95": self.ci95, **self.numbers, "clients": self.clients})}


@dataclass
class OverClients(Metric):
    """What is measured of the global model on each client's own test rows, in every round."""

    client_test_fraction: float = option(
        0.0,
        "share of every client's own rows that it does not train on, to measure the global model on them in every "
        "round, client by client; 0: none",
        at_least=0,
        at_most=0.9,
    )
    tests: Any = field(default=None, init=False, repr=False)  # ClientTests

    is_named = False
    every_round = True
    section = SECTION
    digits = 4
    beside = AGGREGATES
    words = WORDS
    by_round = ("worst", "mean_worst")

    @property
    def is_on(self) -> bool:
        """Whether clients keep test rows."""
        return self.client_test_fraction > 0

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Refuse rows that the plugin does not deal."""
        if flags.get("scenario") == "none":
            raise UserError(
                "--client_test_fraction takes test rows from the rows that the plugin deals, and --scenario none "
                "leaves the host its own: give another --scenario, or drop --client_test_fraction."
            )

    def prepare(self, source: Source) -> None:
        """Take the clients' test rows of the run."""
        self.tests = source.clients

    @property
    def text_count(self) -> int:
        """One a row."""
        return self.tests.count if self.tests else 0

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> dict[int, RowScores] | None:
        """Client id -> scores of its own test rows."""
        return self.tests.scores(scorer) if self.tests else None

    @classmethod
    def by_client(cls, block: Block) -> Mapping[int, Block]:
        """Client id -> its own value, ``n``, ``ci95`` and training ``rows``."""
        return {int(client): own for client, own in block.get("clients", {}).items()}

    @classmethod
    def possible(cls, part: str) -> tuple[float, float] | None:
        """Shares and indices are between 0 and 1, spreads and losses not negative."""
        if part == "jain" or (cls.higher_is_better and part in ("", "worst", "best")):
            return 0.0, 1.0
        return None if part == "small_large" else (0.0, math.inf)

    @classmethod
    def line(cls, block: Block) -> str:
        """``client loss 1.9012, worst 2.1033, gap 0.2021 (chance 0.0514), 10 clients``."""
        parts = [f"{cls.title} {number(block['value'], cls.digits)}", f"worst {number(block.get('worst'), cls.digits)}"]
        if block.get("mean_worst") is not None:
            chance = number(block.get("chance_mean_worst"), cls.digits)
            parts.append(f"gap {number(block['mean_worst'], cls.digits)} (chance {chance})")
        count = len(cls.by_client(block))
        return ", ".join([*parts, f"{count} client{'' if count == 1 else 's'}"])

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """Mean, worst and best client, and the gap beside that of chance."""
        clients, digits = cls.by_client(block), cls.digits
        tested = f"own rows, n={block['n']}"
        yield f"{cls.title}, mean", number(block["value"], digits), interval(block.get("ci95"), 2), tested
        for name in ("worst", "best"):
            where = [client for client, own in clients.items() if own.get("value") == block.get(name)][:1]
            own = "".join(f"client {client}, n={clients[client].get('n')}" for client in where)
            yield f"{name} client", number(block.get(name), digits), interval(block.get(f"{name}_ci95"), 2), own
        if block.get("mean_worst") is not None:
            chance = f"chance {number(block.get('chance_mean_worst'), digits)}"
            yield "mean - worst", number(block["mean_worst"], digits), "", chance


@dataclass
class ClientLoss(OverClients):
    """Loss on a client's own test rows, natural log, nats per response token."""

    name = "client_loss"
    title = "client loss"
    higher_is_better = False
    panels = (
        ("Loss on clients' own test rows: mean, worst, best", ("value", "worst", "best")),
        ("Loss: mean - worst, and by chance alone", ("mean_worst", "chance_mean_worst")),
        ("Loss: standard deviation over clients", ("std",)),
    )

    def result(self, scores: Mapping[int, RowScores], *, seed: int) -> SpreadResult:
        """The loss of every client as the held-out loss has it; its interval is the jackknife's over rows."""
        import numpy as np

        from fedbias_plugin.metrics.client_spread import chance_of_losses, mean_interval
        from fedbias_plugin.metrics.statistics import jackknife_interval

        assert self.tests is not None, "measured rows are prepared"
        clients: dict[int, dict[str, Any]] = {}
        errors: list[float | None] = []
        for client, one in scores.items():
            n, value, bounds, error = len(one.nll), float(one.nll.sum() / one.tokens.sum()), None, None
            if n > 1 and math.isfinite(value):
                without = (one.nll.sum() - one.nll) / (one.tokens.sum() - one.tokens)
                error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
                bounds = jackknife_interval(value, without, possible=(0.0, math.inf))
            errors.append(error)
            clients[client] = {"value": value, "n": n, "ci95": bounds, "rows": self.tests.sizes[client]}
        value = sum(own["value"] for own in clients.values()) / len(clients)
        chance: dict[str, float] = {}
        if len(clients) > 1:
            nll, tokens = (
                np.concatenate([getattr(one, name) for one in scores.values()]) for name in ("nll", "tokens")
            )
            chance = chance_of_losses(nll, tokens, [own["n"] for own in clients.values()], seed=seed)
        return _result(clients, mean_interval(value, errors, (0.0, math.inf)), chance, higher_is_better=False)


@dataclass
class ClientAccuracy(OverClients):
    """Share of a client's own test rows that the model is right about, of a task that knows right and wrong."""

    name = "client_accuracy"
    title = "client accuracy"
    higher_is_better = True
    panels: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("Accuracy on clients' own test rows: mean, worst, best", ("value", "worst", "best")),
        ("Accuracy: mean - worst, and by chance alone", ("mean_worst", "chance_mean_worst")),
        ("Accuracy: standard deviation over clients", ("std",)),
    )

    @property
    def text_count(self) -> int:
        """One a row, where the task tells right from wrong."""
        return super().text_count if self.tests and self.tests.tells_right else 0

    def result(self, scores: Mapping[int, RowScores], *, seed: int) -> SpreadResult:
        """The accuracy of every client with Wilson's interval."""
        from fedbias_plugin.metrics.client_spread import chance_of_shares, mean_interval, wilson

        assert self.tests is not None, "measured rows are prepared"
        clients: dict[int, dict[str, Any]] = {}
        errors: list[float | None] = []
        total = 0.0
        for client, one in scores.items():
            assert one.right is not None, "a task that tells right from wrong does so of every row"
            n, right = len(one.right), float(one.right.sum())
            total += right
            likely = (right + 2) / (n + 4)  # Agresti and Coull 1998: not 0 where all rows are right
            errors.append(math.sqrt(likely * (1 - likely) / (n + 4)))
            clients[client] = {
                "value": right / n,
                "n": n,
                "ci95": wilson(right, n),
                "rows": self.tests.sizes[client],
            }
        value = sum(own["value"] for own in clients.values()) / len(clients)
        counts = [own["n"] for own in clients.values()]
        chance = chance_of_shares(total, counts, seed=seed) if len(clients) > 1 else {}
        return _result(clients, mean_interval(value, errors, (0.0, 1.0)), chance, higher_is_better=True)


def _result(
    clients: Mapping[int, Mapping[str, Any]], ci95: Any, chance: Mapping[str, float], *, higher_is_better: bool
) -> SpreadResult:
    from fedbias_plugin.metrics.client_spread import spread

    values = {client: own["value"] for client, own in clients.items()}
    rows = {client: own["rows"] for client, own in clients.items()}
    numbers: dict[str, Any] = spread(values, rows, higher_is_better=higher_is_better)
    value = numbers.pop("value")
    for name in ("worst", "best"):
        numbers[f"{name}_ci95"] = next(own["ci95"] for own in clients.values() if own["value"] == numbers[name])
    n = sum(own["n"] for own in clients.values())
    return SpreadResult(value, n, ci95, numbers={**numbers, **chance}, clients=clients)
