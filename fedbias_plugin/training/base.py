"""The contracts of a trainable (which parameters train) and of a term (what joins the local objective or optimizer)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.extension import Extension
from fedbias_plugin.registry import build, load, names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.progress import Progress
    from fedbias_plugin.state import State
    from fedbias_plugin.tasks.base import Task
    from fedbias_plugin.training.client_trainer import TrainingSettings


@dataclass
class ClientRound:
    """One client's training in one round, as terms see it.

    Attributes:
        client: its id.
        round_idx: the round, from 0.
        theta: the global state the client starts from; not modified.
        rows: n_i, rows the client holds.
        mu: FedProx's mu for this client.
        learning_rate: of the round.
        broadcast: name -> state that the server sends beside theta (SCAFFOLD's ``control_variate``).
        kept: name -> state that the client kept from its last accepted round.
        sent: name -> state that goes to the server beside the update; terms fill it.
        keeps: name -> state the client is to keep, once its update is accepted; terms fill it.
        extra: name -> number for the records; terms fill it.
    """

    client: int
    round_idx: int
    theta: State
    rows: int = 0
    mu: float = 0.0
    learning_rate: float = 0.0
    broadcast: dict[str, State] = field(default_factory=dict)
    kept: dict[str, State] = field(default_factory=dict)
    sent: dict[str, State] = field(default_factory=dict)
    keeps: dict[str, State] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)


@dataclass
class LocalTraining:
    """What a term that trains a client itself has to do it with.

    Attributes:
        model: holds the state the client starts from; it is left with what was trained.
        parameters: name in theta -> live trained parameter of it.
        features: all rows of the client.
        collate: makes a batch of rows.
        settings: how clients train.
        terms: the other terms.
        after_each_step: what the host does after an optimizer step; what it raises ends the training.
        units: the unit of privacy of every row (:attr:`ClientDataset.units`); None where each row is one.
    """

    model: PreTrainedModel
    parameters: dict[str, torch.nn.Parameter]
    features: Sequence[dict[str, Any]]
    collate: Callable[[list[dict[str, Any]]], Any]
    settings: TrainingSettings
    terms: Sequence[Term] = ()
    after_each_step: Callable[[], None] | None = None
    units: Sequence[int] | None = None

    def add_to_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """``loss`` with what the other terms add."""
        for term in self.terms:
            loss = term.add_to_loss(loss)
        return loss

    def after_step(self, learning_rate: float) -> None:
        """To be called after every optimizer step."""
        for term in self.terms:
            term.after_step(learning_rate)
        if self.after_each_step is not None:
            self.after_each_step()


@dataclass
class Term(Extension):
    """Something in the local objective or optimizer of every client, or the local training as a whole.

    Attributes:
        trains: whether it trains clients itself (:meth:`train`), in place of Transformers' Trainer; one of a run may.
        algorithms: the server algorithms (``--fed_alg``) whose clients train with it. Without any its own flags switch
            it on (``is_on``), on every host; a patched OpenFedLLM has those of its algorithms itself.
        sends, keeps: names of the states that it fills ``sent`` and ``keeps`` with, for what they take of the memory.
    """

    trains: ClassVar[bool] = False
    algorithms: ClassVar[tuple[str, ...]] = ()
    sends: ClassVar[tuple[str, ...]] = ()
    keeps: ClassVar[tuple[str, ...]] = ()

    def is_for(self, fed_alg: str) -> bool:
        """Whether the clients of a run with this server algorithm train with it."""
        return fed_alg in self.algorithms if self.algorithms else self.is_on

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where it does not fit the run's ``flags``; called before the weights are read."""

    def plan(self, model: PreTrainedModel, settings: TrainingSettings, units: Mapping[int, Sequence[int]]) -> None:
        """Called once before a run trains, by the server in a federation; ``units``: client id -> unit of every row.

        Raises:
            UserError: it does not fit the model or a client.
        """

    def train(self, job: ClientRound, local: LocalTraining) -> tuple[int, float | None]:
        """Train the client, where the term :attr:`trains`: optimizer steps done, and the mean training loss.

        The same call must give the same bytes on a CPU. The model's mode, hooks of its own and the global random states
        are put back by the caller.
        """
        raise NotImplementedError

    def begin(self, job: ClientRound, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Called before the first step; ``parameters``: name in theta -> live trained parameter."""

    def add_to_loss(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a micro-batch with the term added."""
        return loss

    def after_step(self, learning_rate: float) -> None:
        """Called after every optimizer step."""

    def finish(self, job: ClientRound, state: State, steps: int) -> None:
        """Called with what the client trained in so many optimizer ``steps``; fills ``sent``, ``keeps``, ``extra``."""


@dataclass
class Trainable(Extension):
    """Which parameters train; chosen by ``--trainable NAME``, without it ``lora`` or ``full`` by ``--use_peft``.

    Attributes:
        is_adapter: whether it is a peft adapter on the frozen model: ``--use_peft`` is true then.
        sends_model: whether clients get the model that they train in from the server (:meth:`broadcast`), and read no
            weight themselves (:meth:`unread_model`); what it remembers is the server's.
        public_flag: its flag that names the data set of the server's own rows, ``auto`` or a file; empty without any.
    """

    is_adapter: ClassVar[bool] = False
    sends_model: ClassVar[bool] = False
    public_flag: ClassVar[str] = ""

    @classmethod
    def uses_peft(cls, flags: Mapping[str, Any]) -> bool:
        """What ``--use_peft`` is in a run with these ``flags``, of those that were written."""
        return cls.is_adapter

    @classmethod
    def reads_public_rows(cls, flags: Mapping[str, Any]) -> bool:
        """Whether the server needs rows of its own, the source ``public`` of the partition, in a run of ``flags``."""
        return bool(cls.public_flag)

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where it does not fit the run's ``flags``; called before anything is read."""

    @property
    def terms(self) -> Sequence[Term]:
        """What it adds to the local objective of every client."""
        return ()

    def read(self, partition: Partition | None, flags: Mapping[str, Any]) -> None:  # most need no rows
        """Called with every row of the run and all flags, on the server, before the weights are read.

        Raises:
            UserError: rows that it needs are missing.
        """

    @abstractmethod
    def prepare(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """The model with exactly the parameters that train requiring gradients; may be another object.

        Called first with the model's outline, on the device ``meta``, so that what does not fit is said before the
        weights are read.

        Raises:
            UserError: it does not fit this model.
        """

    def parameters(self, model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
        """Name -> live parameter, of what clients send and the server averages: what ``model`` trains.

        Raises:
            ValueError: nothing is trained.
        """
        from fedbias_plugin.training.parameters import trained_parameters

        return trained_parameters(model)

    def client_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """What clients train in: ``model``, the server's, or another whose states have the same names."""
        return model

    def unread_model(
        self, config: PreTrainedConfig, make: Callable[[PreTrainedConfig], PreTrainedModel], seed: int
    ) -> PreTrainedModel:
        """What :meth:`client_model` is, where nobody has the whole model; its weights come by :meth:`take`.

        Args:
            config: of the whole model.
            make: makes a model of such a config, whose weights mean nothing.
            seed: as in :meth:`prepare`.

        Raises:
            UserError: it does not fit this model.
        """
        raise NotImplementedError

    def probe_model(self, model: PreTrainedModel) -> PreTrainedModel:
        """What the server loads a client's state into, to measure it: ``model`` or :meth:`client_model`."""
        return model

    def start(
        self, model: PreTrainedModel, task: Task, tokenizer: Any, settings: TrainingSettings, seq_length: int
    ) -> None:
        """Called once on the server, with the model that :meth:`prepare` gave, before the first round."""

    def before_round(self, round_idx: int, theta: State, progress: Progress) -> None:
        """What the server does before it sends ``theta`` in round ``round_idx`` (from 0).

        Called again for a round that was not finished; it must not do its work twice then.
        """

    @property
    def parts(self) -> dict[str, int]:
        """Name -> version of every state that a client must hold now beside theta."""
        return {}

    def part(self, name: str) -> State:
        """The state that :attr:`parts` names, as it is now."""
        raise NotImplementedError

    def broadcast(self, client: int) -> dict[str, State]:
        """Name -> state of :attr:`parts` that ``client`` must be sent beside theta now, as it has not got it yet."""
        return {}

    def delivered(self, clients: Sequence[int]) -> None:
        """The round is finished in which ``clients`` got :meth:`broadcast`."""

    def take(self, model: PreTrainedModel, broadcast: Mapping[str, State]) -> None:
        """At the client, before it trains: put into ``model`` what it was sent beside theta."""

    def at_client(self, model: PreTrainedModel, job: ClientRound) -> AbstractContextManager[None]:
        """Around the training of a client, which trains what requires a gradient in ``model`` meanwhile."""
        return nullcontext()


def check_host_trains(arguments: Any) -> None:
    """For a host that trains clients by itself: refuse a term that does, which would silently be left out.

    Raises:
        UserError: naming the term.
    """
    for name in names("term"):
        if load("term", name).trains and build("term", name, arguments).is_on:
            raise UserError(f"The term {name} trains clients itself, and here the host does; use fedbias run.")
