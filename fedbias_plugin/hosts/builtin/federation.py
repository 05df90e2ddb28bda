"""The rounds of a run in its output folder: train, weigh, average, measure, keep what a resumed run needs."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset
from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.federation.checkpoints import Checkpoint, CheckpointFolder
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.federation.local_only import local_only
from fedbias_plugin.federation.saving import model_card, save_global_model, told_shares
from fedbias_plugin.federation.session import BiasSession
from fedbias_plugin.federation.state_store import StateStore, choose_store
from fedbias_plugin.files import delete_temporary_files
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.model_and_rows import load_checked
from fedbias_plugin.hosts.builtin.output_folder import check_is_free, resume_line
from fedbias_plugin.hosts.builtin.stopping import StopSignals
from fedbias_plugin.hosts.builtin.waiting import waiting_bytes
from fedbias_plugin.progress import Progress
from fedbias_plugin.registry import build
from fedbias_plugin.state import State
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.tracking.jsonl import METRICS_FILE
from fedbias_plugin.training.base import ClientRound, Trainable
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.fingerprint import model_fingerprint
from fedbias_plugin.training.parameters import read_state, write_state
from fedbias_plugin.training.random_states import random_states, restore_random_states
from fedbias_plugin.updates.base import Update

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STATES = ".local_states"


class Federation:
    """The model, the clients' encoded rows, the client and the server, for the length of one run.

    Args:
        task: what rows become.
        tokenizer: of the model.
        session: owns the clients' rows, the measuring and the weighting.
        progress: draws the bars.
        stop: asked after every training step whether to go on.

    Raises:
        UserError: a client has no token to train on, its rows or what is trained do not fit the model, or the model
            cannot be loaded.
    """

    def __init__(
        self,
        host: HostArguments,
        bias: BiasArguments,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        session: BiasSession,
        progress: Progress,
        stop: StopSignals,
    ) -> None:
        self.host, self.bias, self.session, self.progress, self.stop = host, bias, session, progress, stop
        self.tokenizer, self.output = tokenizer, Path(host.output_dir)
        self.checkpoints = CheckpointFolder(self.output)
        self._has_begun = False
        self._on_disk: int | None = None
        self.trainable: Trainable = build(
            "trainable", bias.trainable or ("lora" if host.use_peft else "full"), host, bias
        )
        trainable, terms = self.trainable, [*terms_of(host.fed_alg, host, bias), *self.trainable.terms]
        trainable.read(session.partition, vars(host) | vars(bias))
        self.model, self.features = load_checked(host, task, trainable, tokenizer, self.datasets_to_encode())
        self.global_state = read_state(self.model)
        self.start = {name: tensor.clone() for name, tensor in self.global_state.items() if session.measures_own_models}
        waiting = waiting_bytes(host, terms, self.global_state, len(session.kept_by_stages))
        settings = TrainingSettings.of(vars(host) | vars(bias))
        trainable.start(self.model, task, tokenizer, settings, host.seq_length)
        self.client = Client(
            trainable.client_model(self.model),
            terms,
            trainable=trainable,
            task=task,
            settings=settings,
            pad_token_id=self.tokenizer.pad_token_id,
            store=choose_store(host.local_states, self.output / STATES, waiting),
            after_step=stop.check,
            units={dataset.client: dataset.units for dataset in session.client_datasets},
        )
        self.client.plan()
        self.server = ServerOptimizer(host.fed_alg, vars(host) | vars(bias), num_clients=host.num_clients)

    def datasets_to_encode(self) -> Sequence[ClientDataset]:
        """The clients that train in this process."""
        return self.session.client_datasets

    def run(self, resumed: Checkpoint | None) -> None:
        """Train, save and close, in a folder that is this process's alone."""
        if resumed is None:
            check_is_free(self.output)  # another process may have been here since
        delete_temporary_files(self.output)
        StateStore(self.output / STATES).close()  # of a process that was killed
        try:
            with closing(self.client.store):
                self._train(resumed)
                self.save()
        except BaseException:
            if self._has_begun and self.checkpoints.is_empty:
                logger.warning("No checkpoint was kept (--checkpoint_every 0): the run cannot be resumed.")
            elif self._has_begun:
                logger.warning("What is finished is kept. To go on: %s", resume_line(self.output))
            raise
        self.session.close()
        self.checkpoints.delete()

    def _train(self, resumed: Checkpoint | None) -> None:
        """Round 0 measures the untouched model; every further round trains, weighs, averages and measures."""
        done = self._begin(resumed)
        try:
            with self.progress.rounds(self.host.num_rounds) as advance:
                advance(done)
                for round_number in range(done + 1, self.host.num_rounds + 1):
                    self._round(round_number - 1)
                    done = round_number
                    if done % self.host.save_model_freq == 0:
                        self.save(f"checkpoint-{done}")
                    if done % (self.host.checkpoint_every or 1) == 0:
                        self._checkpoint(done)
                    advance()
        except Stopped as stopped:
            if not stopped.at_once:
                self._checkpoint(done)
            raise

    def _begin(self, resumed: Checkpoint | None) -> int:
        """The last round that is finished: 0 in a new run, whose untouched model is measured here."""
        if resumed is not None and resumed.round is not None:
            self.load_state_dict(resumed.details)
            resumed.details.clear()  # whose states are mapped from files that are to be deleted
            self._on_disk, self._has_begun = resumed.round, True
            logger.info("resumed after round %d of %d", resumed.round, self.host.num_rounds)
            return resumed.round
        if resumed is not None:  # the process before got no further than the untouched model
            (self.output / METRICS_FILE).unlink(missing_ok=True)
            self.session.load_state_dict(resumed.details["session"])
        elif self.host.checkpoint_every:
            self.checkpoints.write(Checkpoint(None, self._arguments, {"session": self.session.state_dict()}))
        self._has_begun = True
        self.session.after_aggregation(0, **self._models)
        self._checkpoint(0)
        return 0

    @property
    def _models(self) -> dict[str, Any]:
        """What is measured after a round: the live model, and that of the clients where it is another."""
        others = {} if self.client.model is self.model else {"of_clients": self.client.model}
        return {"model": self.model, "tokenizer": self.tokenizer, **others}

    def _round(self, round_idx: int) -> None:
        with self.stop.held():  # half an alignment would be no state to go on from
            self.trainable.before_round(round_idx, self.global_state, self.progress)
        updates, states = self._trained(round_idx, self.host.clients_of(round_idx, self.bias.schedule_seed))
        with self.stop.held(bool(self.host.checkpoint_every) and self._on_disk != round_idx):
            self._aggregate(round_idx, states, updates)
            write_state(self.model, self.global_state)
            if self.client.model is not self.model:
                write_state(self.client.model, self.global_state)
            self.trainable.delivered(list(updates))
            self.client.forget(updates.values())
            del updates, states  # as large as the model each, when all weights are trained
            is_last = round_idx + 1 == self.host.num_rounds
            beside = self._local_only(self._models) if is_last and self.session.measures_own_models else None
            self.session.after_aggregation(round_idx + 1, **self._models, beside=beside)

    def _local_only(self, of_model: Mapping[str, Any]) -> Mapping[str, Any]:
        rounds = [self.host.clients_of(one, self.bias.schedule_seed) for one in range(self.host.num_rounds)]
        with self.progress.task("train every client alone", len(self.features)) as advance:
            states = local_only(self.client, self.start, self.features, rounds, advance)
            return self.session.of_own_models(states, self.global_state, **of_model)

    def _trained(self, round_idx: int, clients: Sequence[int]) -> tuple[dict[int, Update], Mapping[int, State]]:
        """Every client's update as it was trained, and the states that the session gives back to be averaged."""
        updates = {}
        with self.progress.task(f"round {round_idx + 1}: train clients", len(clients)) as advance:
            for client in clients:
                job = self._job(client, round_idx)
                updates[client] = self.client.fit(job, self.features[client])
                self._check_loss(updates[client], job)
                advance()
        received = dict(updates), self.global_state
        probe = self.trainable.probe_model(self.model)
        return updates, self.session.receive(round_idx + 1, *received, model=probe, tokenizer=self.tokenizer)

    def _job(self, client: int, round_idx: int) -> ClientRound:
        """What the client begins the round with."""
        mu = self.session.proximal_mu(client, self.host.prox_mu)
        broadcast = {**self.server.broadcast, **self.trainable.broadcast(client)}
        return self.client.begin(client, round_idx, self.global_state, mu=mu, broadcast=broadcast)

    def _check_loss(self, update: Update, job: ClientRound) -> None:
        """Refuse to go on with a client whose training has diverged.

        Raises:
            UserError: its loss is not finite, and ``--on_bad_update`` is ``stop``.
        """
        if update.loss is not None and not math.isfinite(update.loss) and self.bias.on_bad_update == "stop":
            raise UserError(
                f"Client {job.client}'s training loss in round {job.round_idx + 1} is {update.loss}: training has "
                "diverged. "
                f"Lower --learning_rate (now {job.learning_rate:g}), or go on without such clients: --on_bad_update "
                "drop."
            )

    def _aggregate(self, round_idx: int, states: Mapping[int, State], updates: Mapping[int, Update]) -> None:
        """Average ``states`` into the global one; without any, as all updates were refused, it stays."""
        if not states:
            return
        accepted = {client: updates[client] for client in states}
        deltas = {c: update.sent["control_delta"] for c, update in accepted.items() if "control_delta" in update.sent}
        rows = {client: update.rows for client, update in accepted.items()}
        theta = self.global_state
        if self.session.averages_one:
            first = min(states)
            states, rows = {first: states[first]}, {first: 1}
        into = None if self.session.changes_result else theta  # in the same memory unless a stage compares the two
        new = self.server.aggregate(round_idx, theta, states, rows, deltas or None, into=into)
        of_server = {"model": self.model, "tokenizer": self.tokenizer}
        self.global_state = self.session.on_result(round_idx + 1, new, theta, **of_server)
        for client, update in accepted.items():
            self.client.keep(client, update.keeps)

    def save(self, name: str | None = None) -> None:
        """Write the global adapter to ``adapter`` (without one the model to ``model``) or ``name`` in the output."""
        host, bias, merged = self.host, self.bias, self.session.changes_base
        with_adapter = hasattr(self.model, "peft_config") and not merged
        folder = self.output / (name or ("adapter" if with_adapter else "model"))
        settings = f"{host.fed_alg}, --aggregation {bias.aggregation}, {host.num_rounds} rounds, seed {host.seed}"
        shares = told_shares(self.session.client_datasets, bias)
        base = host.model_name_or_path
        assert self.client.task is not None
        told = base, bias.scenario, shares, settings, bias.attack
        made_by = bias.trainable or "lora"
        card = model_card(*told, with_adapter=with_adapter, kind=self.client.task.model_kind, method=made_by)
        save_global_model(self.model, self.tokenizer, folder, card, merged=merged)

    def _checkpoint(self, round_number: int) -> None:
        """Write the state after ``round_number``, which is the present one, unless that is done or not wanted."""
        if self.host.checkpoint_every and self._on_disk != round_number:
            self.checkpoints.write(Checkpoint(round_number, self._arguments, self.state_dict()))
            self._on_disk = round_number

    def state_dict(self) -> dict[str, Any]:
        """Everything that later rounds depend on: JSON-ready but for its states."""
        return {
            "global": self.global_state,
            "session": self.session.state_dict(),
            "server": self.server.state_dict(),
            "client": self.client.state_dict(),
            "model": self._fingerprint,
            "random": random_states(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; nothing of it is kept.

        Raises:
            UserError: the model, the data or the plugin's version is another one.
        """
        if state["model"] != self._fingerprint:
            raise UserError(
                "The run to resume had another model or tokenizer: give --model_name_or_path what it began with."
            )
        self.session.load_state_dict(state["session"])
        self.global_state = {name: tensor.clone() for name, tensor in state["global"].items()}
        write_state(self.model, self.global_state)
        self.session.on_model(self.model)
        self.server.load_state_dict(state["server"])
        self.client.load_state_dict(state["client"])
        restore_random_states(state["random"])

    @property
    def _arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self.host) | dataclasses.asdict(self.bias)

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of what is not trained: the same in every round."""
        return model_fingerprint(self.model, self.tokenizer)
