"""The client's side of a round, for every host: train the live model on a client's rows, and give back its update."""

from __future__ import annotations

import functools
import logging
import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from transformers import PrinterCallback, TrainerCallback

from fedbias_plugin.errors import UserError
from fedbias_plugin.extension import Extension
from fedbias_plugin.federation.state_store import StateStore, state_bytes
from fedbias_plugin.options import options
from fedbias_plugin.registry import build, load, names
from fedbias_plugin.state import State
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.training.base import ClientRound, LocalTraining, Term, Trainable
from fedbias_plugin.training.client_memory import client_memory
from fedbias_plugin.training.client_trainer import LeanTrainer, TrainingSettings
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.parameters import live_parameters, read_state, write_state
from fedbias_plugin.updates.base import Update

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

logger = logging.getLogger(__name__)


def terms_of(fed_alg: str | None, *arguments: Any) -> list[Term]:
    """The terms that the clients of a run train with, in the registry's order.

    Args:
        fed_alg: the server algorithm; None where the host brings what belongs to its algorithms itself.
        arguments: what holds their flags.

    Raises:
        UserError: one does not fit the flags, or two would train in place of the Trainer.
    """
    wanted = [name for name in names("term") if fed_alg is not None or not load("term", name).algorithms]
    terms: list[Term] = [build("term", name, *arguments) for name in wanted]
    chosen = [term for term in terms if (term.is_on if fed_alg is None else term.is_for(fed_alg))]
    flags = {flag: value for one in arguments for flag, value in vars(one).items()}
    for term in chosen:
        term.check_flags(flags)
    training = [term.name for term in chosen if term.trains]
    if len(training) > 1:
        raise UserError(f"The terms {' and '.join(training)} would both train the clients; switch one off.")
    if training and load("task", flags.get("task", "sft")).makes_loss:
        term = next(term for term in chosen if term.trains)
        given = [f"--{flag}" for flag, about in options(type(term)).items() if getattr(term, flag) != about.default]
        raise UserError(
            f"--task {flags['task']} has a loss of its own, and the term {term.name} ({', '.join(given)}) trains "
            "clients by that of the model; drop one."
        )
    return chosen


class Client:
    """Trains every client of a run, one after the other, in the one live model.

    A host that trains by itself calls :meth:`begin`, :meth:`attach` and :meth:`finish`; for the others :meth:`fit` does
    the latter two.

    Args:
        model: the live model, see :func:`fedbias_plugin.training.parameters.prepared`.
        terms: what joins the local objective or optimizer, see :func:`terms_of`.
        trainable: what prepared the model; None where the host did.
        task: what the rows were encoded with; for :meth:`fit`.
        settings: how clients train; for :meth:`fit`.
        pad_token_id: of the tokenizer; for :meth:`fit`.
        store: where the states of a round wait, and what clients keep.
        after_step: called after every optimizer step; what it raises ends the training.
        units: client id -> the unit of privacy of each of its rows, where a row is not one alone.

    Attributes:
        kept: client id -> name -> state that it kept from its last accepted round.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[Term],
        *,
        trainable: Trainable | None = None,
        task: Task | None = None,
        settings: TrainingSettings | None = None,
        pad_token_id: int = 0,
        store: StateStore | None = None,
        after_step: Callable[[], None] | None = None,
        units: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.model, self.terms, self.trainable, self.task = model, terms, trainable, task
        self.settings, self.pad_token_id = settings or TrainingSettings(), pad_token_id
        self.store = store or StateStore()
        self.kept: dict[int, dict[str, State]] = {}
        self.after_step, self._units = after_step, units or {}
        self._needed: dict[tuple[bool, ...], dict[str, float]] = {}

    def begin(
        self,
        client: int,
        round_idx: int,
        theta: State,
        *,
        rows: int = 0,
        mu: float = 0.0,
        broadcast: Mapping[str, State] | None = None,
    ) -> ClientRound:
        """What a round begins with; the arguments are the attributes of :class:`ClientRound`."""
        kept = dict(self.kept.get(client, {}))
        return ClientRound(client, round_idx, theta, rows, mu, broadcast=dict(broadcast or {}), kept=kept)

    def fit(self, job: ClientRound, features: Sequence[dict[str, Any]]) -> Update:
        """Load ``job.theta`` into the model, train it on the client's ``features``, and give back its update.

        The model is left with the client's weights; its mode, its cache setting and the global random states are left
        as they were. The same call gives the same bytes on a CPU.

        Raises:
            UserError: no row has a trainable token (before anything is trained).
        """
        assert self.task is not None, "a client that fits has a task"
        job.rows = len(features)
        if not any(map(self.task.is_trainable, features)):
            raise UserError(
                f"Client {job.client} has no trainable token in its {job.rows} rows: the response of every row is cut "
                "off. Raise --seq_length."
            )
        write_state(self.model, job.theta)
        around = nullcontext() if self.trainable is None else self.trainable.at_client(self.model, job)
        if self.trainable is not None:
            self.trainable.take(self.model, job.broadcast)
        own = next((term for term in self.terms if term.trains), None)
        with around, training_mode(self.model, self.settings.gradient_checkpointing):
            train = self._train if own is None else functools.partial(self._train_with, own)
            job.extra |= {} if own is not None else self._memory()
            steps, loss = train(job, features, self.task)
        return self.finish(job, read_state(self.model), steps, loss)

    def _memory(self) -> dict[str, float]:
        """What a training step takes on the client's device, by estimate; nothing for other models than decoders."""
        trained = tuple(parameter.requires_grad for parameter in self.model.parameters())
        if trained not in self._needed:  # all that differs from client to client
            try:
                self._needed[trained] = {"client_memory_bytes": float(client_memory(self.model, self.settings).total)}
            except UserError:
                self._needed[trained] = {}
        return self._needed[trained]

    def plan(self) -> None:
        """Before a run trains: the terms look at it, see :meth:`Term.plan`."""
        for term in self.terms:
            term.plan(self.model, self.settings, self._units)

    def _train_with(
        self, own: Term, job: ClientRound, features: Sequence[dict[str, Any]], task: Task
    ) -> tuple[int, float | None]:
        """As :meth:`_train`, by the term that takes the Trainer's place."""
        job.learning_rate = self.settings.learning_rate_of(job.round_idx)
        parameters = live_parameters(self.model)
        for term in self.terms:
            term.begin(job, parameters)
        collate = task.collator(self.pad_token_id)
        others, units = [term for term in self.terms if term is not own], self._units.get(job.client)
        assert units is None or len(units) == len(features), "a task makes a feature of every row"
        local = LocalTraining(
            *(self.model, parameters, features, collate, self.settings, others, self.after_step), units
        )
        return own.train(job, local)

    def _train(self, job: ClientRound, features: Sequence[dict[str, Any]], task: Task) -> tuple[int, float | None]:
        """Optimizer steps done and mean training loss; the optimizer is gone afterwards."""
        rows = [features[index] for index in self.settings.rows_of(job.rows, job.round_idx)]
        if not any(map(task.is_trainable, rows)):
            message = "Client %d, round %d: every row drawn has its response cut off."
            logger.warning(message, job.client, job.round_idx + 1)
        use_cpu = next(self.model.parameters()).device.type == "cpu"
        about = self.model, rows, job, self.settings, self.pad_token_id
        with tempfile.TemporaryDirectory() as scratch, task.objective(*about) as objective:
            trainer = LeanTrainer(
                model=self.model,
                args=self.settings.arguments(job.round_idx, job.client, scratch, use_cpu),
                train_dataset=objective.features,
                data_collator=task.collator(self.pad_token_id),
                own_loss=objective.loss,
            )
            trainer.remove_callback(PrinterCallback)
            self.attach(trainer, job)
            result = trainer.train()
        return int(result.global_step), float(result.training_loss)

    def attach(self, trainer: Trainer, job: ClientRound) -> None:
        """Let ``trainer``, any host's, train with the terms; it is changed in place."""
        job.learning_rate = trainer.args.learning_rate
        parameters = live_parameters(self.model)
        for term in self.terms:
            term.begin(job, parameters)
        trainer.add_callback(_AfterStep(self.terms, self.after_step))
        if not self.terms:
            return
        inner, itself = type(trainer).compute_loss, weakref.ref(trainer)  # a reference would keep the optimizer alive

        def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
            living: Any = itself()
            found = inner(living, model, inputs, return_outputs=return_outputs, **others)
            loss = found[0] if return_outputs else found
            for term in self.terms:
                loss = term.add_to_loss(loss)
            return (loss, *found[1:]) if return_outputs else loss

        trainer.compute_loss = compute_loss

    def finish(self, job: ClientRound, state: State, steps: int, loss: float | None) -> Update:
        """What the client sends: ``state`` after ``steps`` optimizer steps of mean training loss ``loss``."""
        for term in self.terms:
            term.finish(job, state, steps)
        return self.update(job, state, steps, loss)

    def update(self, job: ClientRound, state: State, steps: int, loss: float | None) -> Update:
        """The update of a job whose terms are done, here or elsewhere; its states wait in the store."""
        stored = self._stored
        return Update(
            job.client,
            self.store.keep(f"client-{job.client}", state),
            job.rows,
            loss,
            extra=dict(job.extra),
            steps=steps,
            learning_rate=job.learning_rate,
            sent={name: stored(job.client, name, part) for name, part in job.sent.items()},
            keeps={name: stored(job.client, name, part) for name, part in job.keeps.items()},
            kept=dict(job.kept),
            received={name: state_bytes(part) for name, part in job.broadcast.items()},
        )

    def keep(self, client: int, keeps: Mapping[str, State]) -> None:
        """The client's update was accepted: it goes on with ``keeps`` in its next round."""
        waiting = {name for term in self.terms for name in term.keeps}  # in the store; what a stage made is not
        own = {name: part if name in waiting else self._stored(client, name, part) for name, part in keeps.items()}
        if own:
            self.kept[client] = {**self.kept.get(client, {}), **own}

    def forget(self, updates: Iterable[Update]) -> None:
        """Their round is over: delete the files of what they sent; tensors in use stay valid."""
        for update in updates:
            self.store.drop(f"client-{update.client}")
            for name in update.sent:
                self.store.drop(f"client-{update.client}-{name}")

    def state_dict(self) -> dict[str, Any]:
        """What clients keep, and what task, trainable and terms must know to go on."""
        kept = {str(client): dict(parts) for client, parts in self.kept.items()}
        return {"kept": kept, "extensions": {name: part.state_dict() for name, part in self._extensions().items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; its tensors are copied."""
        for name, part in self._extensions().items():
            part.load_state_dict(state["extensions"][name])
        for client, parts in state["kept"].items():
            for name, kept in parts.items():
                own = {key: tensor.clone() for key, tensor in kept.items()}
                self.keep(int(client), {name: self._stored(int(client), name, own)})

    def _stored(self, client: int, name: str, state: State) -> State:
        return self.store.keep(f"client-{client}-{name}", state)

    def _extensions(self) -> dict[str, Extension]:
        named: dict[str, Extension | None] = {"task": self.task, "trainable": self.trainable}
        terms = {f"term {term.name}": term for term in self.terms}
        return {name: part for name, part in {**named, **terms}.items() if part is not None}


class _AfterStep(TrainerCallback):
    """Calls every term, and ``function``, after an optimizer step."""

    def __init__(self, terms: Sequence[Term], function: Callable[[], None] | None) -> None:
        self.terms, self.function = terms, function

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer."""
        for term in self.terms:
            term.after_step(args.learning_rate)
        if self.function is not None:
            self.function()
