"""An update, and the contract of a stage that it passes.

A new stage is one file beside this one and its name in the registry. Importing its file imports no torch: its flags are
read for every ``--help``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.extension import Extension

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.federation.run_description import HostRun
    from fedbias_plugin.metrics.suite import Measurement, Suite
    from fedbias_plugin.state import State


@dataclass
class Update:
    """What the server knows of one client in a round.

    Attributes:
        client: its id.
        state: theta_i as it is now on its way; never modified in place.
        rows: n_i, rows the client trained on.
        loss: mean training loss of the round, nats per token; None where it reports none.
        norm: L2 norm of theta_i - theta; None before it was checked, or where it has no finite one.
        fault: why it cannot be used, as a phrase without client and round; None for a good update.
        measured: its bias on the probe items; None when nobody measured.
        extra: further numbers of the client in this round, by name.
        steps: optimizer steps it trained.
        learning_rate: of its optimizer as the round began; None where nobody saw it train.
        sent: name -> state that it sends beside theta_i (SCAFFOLD's ``control_delta``).
        keeps: name -> state that it goes on with, once the update is accepted.
        kept: name -> state that it kept from its last accepted round, also what a stage had it keep.
        payload: what -> bytes, of all that stands for theta_i on its way to the server, where a stage sends less than
            its tensors (``{"prompt rows": 15360, "bitmap": 3}``); None: the bytes of its tensors.
        received: name -> bytes that came to the client beside theta.
    """

    client: int
    state: State
    rows: int
    loss: float | None = None
    norm: float | None = None
    fault: str | None = None
    measured: Measurement | None = None
    extra: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    learning_rate: float | None = None
    sent: dict[str, State] = field(default_factory=dict)
    keeps: dict[str, State] = field(default_factory=dict)
    kept: dict[str, State] = field(default_factory=dict)
    payload: dict[str, int] | None = None
    received: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSide:
    """What the server has for a step of its own on the result.

    Attributes:
        model: the live model; what it holds does not matter afterwards.
        tokenizer: the model's.
        suite: the metrics, and which of their items are probe items.
        measure: a state on the probe items, and by ``heldout_loss`` on the half of the rows that compares clients.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    suite: Suite
    measure: Callable[[State], Measurement]


@dataclass
class Stage(Extension):
    """Something on the way of an update; every half of it is optional.

    Attributes:
        order: stages of a smaller one come first.
    """

    order: ClassVar[int] = 0

    @property
    def attackers(self) -> frozenset[int]:
        """The clients that it makes attackers of."""
        return frozenset()

    @property
    def changes_base(self) -> bool:
        """Whether it changes weights that are not trained, so that an adapter alone is not the model."""
        return False

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's numbers must know."""
        return []

    @property
    def keeps(self) -> tuple[str, ...]:
        """Names of the states that :meth:`at_client` adds to ``update.keeps``, in place; the client gets them back."""
        return ()

    def is_for(self, arguments: BiasArguments) -> bool:
        """Whether it is in a run with these flags, where its own alone do not tell (``is_on``)."""
        return True

    def prepare(self, arguments: BiasArguments, run: HostRun, shares: Mapping[int, float]) -> None:
        """Called once, before rows are changed; ``shares``: client id -> share of biased rows, where it is known.

        Raises:
            UserError: the stage does not fit the run.
        """

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """The update as the client sends it, in round ``number`` (from 1) of so many ``clients``; theta is global."""
        return update

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """What the server does with what it receives: changes entries of ``updates``, by client id."""

    def on_weights(self, weighting: Weighting, rule: Rule, reports: ClientReports, number: int) -> Weighting:
        """What the host averages by: ``weighting`` of the ``rule``, or another.

        ``reports`` are of the clients whose updates are used; there may be none of those that were received.
        """
        return weighting

    def on_result(self, new: State, theta: State, number: int) -> State:
        """The global state after averaging; ``theta`` was it before. Neither is modified."""
        return new

    def step(self, new: State, theta: State, number: int, server: ServerSide) -> tuple[State, dict[str, float]]:
        """As :meth:`on_result`, after every stage's, where the model is at hand; and numbers that the round records."""
        return new, {}

    def on_model(self, model: PreTrainedModel) -> None:
        """The live model, which holds the global state: of every round (0 too) before it is measured, and of a resumed
        run before it goes on. A stage that changes weights which are not trained says so (:attr:`changes_base`)."""
