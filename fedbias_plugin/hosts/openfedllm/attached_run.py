"""One run of a patched OpenFedLLM: the session, the training of each client, and the aggregation of a round."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.federation.saving import model_card, save_global_model, told_shares
from fedbias_plugin.federation.session import BiasSession, HostRun
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.client_training import (
    ClientTraining,
    ControlVariates,
    add_card_to_saves,
    preserved,
    watch_training,
)
from fedbias_plugin.hosts.openfedllm.flags import one_line
from fedbias_plugin.hosts.openfedllm.host_rows import Formatting
from fedbias_plugin.hosts.openfedllm.resuming import Resuming, fill, unchanged
from fedbias_plugin.scoring.processes import running_processes
from fedbias_plugin.tracking.jsonl import METRICS_FILE
from fedbias_plugin.training.determinism import make_deterministic
from fedbias_plugin.training.parameters import read_state, write_state
from fedbias_plugin.training.random_states import preserved_random_states
from fedbias_plugin.updates.base import Update

if TYPE_CHECKING:
    from fedbias_plugin.hosts.openfedllm.hooks import HostCall

logger = logging.getLogger(__name__)


class AttachedRun:
    """What happens at each hook, in the order of the host's script.

    Args:
        arguments: every flag.
        is_dpo: whether the script trains on preferences.
        pinned: whether this is the pinned stack.
        template: EOS text -> the host's formatting function and the text before a response; None: unknown.
    """

    def __init__(
        self,
        arguments: AllArguments,
        *,
        is_dpo: bool,
        pinned: bool,
        template: Callable[[str], tuple[Formatting, str]] | None = None,
    ) -> None:
        self.arguments, self.template = arguments, template
        self.script_args, self.fed_args, self.plugin = arguments.script, arguments.fed, arguments.plugin
        if self.plugin.deterministic:
            make_deterministic()
        self.controls = ControlVariates()
        self.data = ClientData(arguments, is_dpo)
        self.training = ClientTraining(self.data, pinned)
        self.session: BiasSession | None = None
        self.model: Any = None
        self.tokenizer: Any = None
        self._clients: list[int] = []
        self._calls = 0
        self._client = 0
        self._round_idx = 0
        self._updates: dict[int, Update] = {}

    @functools.cached_property
    def resuming(self) -> Resuming:
        """Checkpoints; made when the host has made its folder for a new run."""
        return Resuming(self)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Wrong input in this block ends the script with one line, and the run's records say why it failed."""
        try:
            with one_line(self.arguments.renamed):
                yield
        except SystemExit as error:
            if isinstance(error.__context__, UserError):
                self.close(f"UserError: {error.__context__}")
            raise

    def open_session(self, host_dataset: Any = None) -> BiasSession:
        """The session, made at the first call; all data of the plugin is read and checked then.

        Args:
            host_dataset: what the host loaded, where its own preferences are to be flipped.

        Raises:
            UserError: a data set is missing, damaged or too small, or the output folder holds another run.
        """
        if self.session is not None:
            return self.session
        script_args, fed_args, data = self.script_args, self.fed_args, self.data
        resumes = self.resuming.resumed is not None  # which sets output_dir
        output = Path(script_args.output_dir)
        if not resumes and (output / METRICS_FILE).exists():
            raise UserError(f"{output} holds the metrics.jsonl of another run; give another --output_dir.")

        def prompt(instruction: str) -> str:
            assert self.template is not None
            formatting, _ = self.template("")
            return formatting({"instruction": [instruction], "response": [""]})[0]

        host_run = HostRun(
            output_dir=output,
            fed_alg=fed_args.fed_alg,
            num_clients=fed_args.num_clients,
            sample_clients=min(fed_args.sample_clients, fed_args.num_clients),
            num_rounds=fed_args.num_rounds,
            seed=script_args.seed,
            template=script_args.template,
            seq_length=script_args.seq_length,
            config=self.arguments.config,
            prompt=prompt if self.template else None,
        )
        partition = data.preference_partition(host_dataset) if data.from_scenario and data.is_dpo else None
        refuses = not self.plugin.is_idle
        self.session = BiasSession(self.plugin, host_run, partition=partition, refuses_updates=refuses)
        self.resuming.open(self.session)
        data.say_plan(self.session.client_datasets)
        return self.session

    def check_rows(self) -> None:
        """Refuse a client without a token to train on, as soon as the rows are known and before the model is loaded."""
        if self.template is None or self.data.is_dpo:
            return
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.script_args.model_name_or_path, use_fast=False)
        except Exception:  # the host meets it too, in a moment
            return
        self.training.formatting, self.training.response_marker = self.template(tokenizer.eos_token)
        self.training.check_clients(tokenizer)

    def begin_round(self, round_idx: int, clients: list[int]) -> None:
        """Round ``round_idx`` (from 0) begins; ``clients`` take part."""
        self._round_idx, self._clients, self._calls = round_idx, list(clients), 0
        self.controls.new_round()

    def client_comes(self, dataset: Any, round_idx: int) -> None:
        """The client that holds ``dataset`` is next to train in round ``round_idx`` (from 0)."""
        self._round_idx = round_idx
        self._client = self.data.client_of(dataset, self._calls, self._clients or [0])
        self._calls += 1

    def build_trainer(self, call: HostCall) -> Any:
        """The host's trainer for the client at hand; before the first one the untouched model is measured."""
        arguments, client = call.arguments, self._client
        self.training.set_pad_token(arguments["tokenizer"])
        if self.model is None:
            self._begin(arguments)
        mu = getattr(self.fed_args, "prox_mu", None)
        mu = None if mu is None else self.open_session().proximal_mu(client, mu)
        self.training.prepare(arguments, client, self._round_idx, mu)
        self.controls.give(client, arguments)
        around = preserved(arguments["model"])
        trainer = call()
        self._attach(trainer, client, mu or 0.0, around)
        return trainer

    def aggregate(self, call: HostCall) -> Any:
        """Score and weigh the clients' states, let the host average, measure the global model, write the round."""
        arguments, session = call.arguments, self.open_session()
        clients, round_idx = list(arguments["clients_this_round"]), arguments["round_idx"]
        if self.resuming.is_finished(round_idx):
            return self.resuming.fill(arguments)
        host_states, counts = arguments["local_dict_list"], arguments["sample_num_list"]
        with preserved_random_states():
            for client in clients:  # the host has read the state itself
                self._updates.setdefault(client, Update(client, {}, 0))
                self._updates[client].state, self._updates[client].rows = host_states[client], counts[client]
                if self.fed_args.fed_alg == "scaffold":
                    self.controls.count(self._updates[client], self.model)
            states = session.receive(
                round_idx + 1,
                {client: self._updates[client] for client in clients},
                arguments["global_dict"],
                model=self.model,
                tokenizer=self.tokenizer,
            )
        result = self._average(call, states, round_idx + 1)
        with preserved_random_states():
            session.after_aggregation(round_idx + 1, model=self.model, tokenizer=self.tokenizer)
        self._updates = {}
        if round_idx + 1 == self.fed_args.num_rounds:
            self._finish()
        else:
            self.resuming.keep(round_idx + 1, result[0], result[1], arguments)
        return result

    def close(self, failure: str) -> None:
        """The script ends; a run that has not finished is marked failed. Safe to call twice."""
        if self.session is not None:
            self.session.close(failure=failure)

    def _begin(self, arguments: Mapping[str, Any]) -> None:
        """Measure the untouched model, unless an earlier process did."""
        self.model, self.tokenizer = arguments["model"], arguments["tokenizer"]
        self.training.check_clients(self.tokenizer)
        self.training.let_gradients_in(self.model, arguments["training_args"])
        self.client = Client(self.model, terms_of(None, self.plugin))
        session, global_dict = self.open_session(), arguments.get("global_dict")
        if self.resuming.resumed is not None:
            self.client.load_state_dict(self.resuming.resumed.details["client"])
            self.resuming.take_up(global_dict)
            return
        with preserved_random_states():
            session.after_aggregation(0, model=self.model, tokenizer=self.tokenizer)
        if global_dict is not None:
            self.resuming.keep_first(global_dict)

    def _attach(self, trainer: Any, client: int, mu: float, around: contextlib.ExitStack) -> None:
        """All that the plugin has to do with the trainer of one client, which the script is about to train.

        Args:
            trainer: the host's; changed in place.
            client: whose it is.
            mu: FedProx's, of this client.
            around: left when the training ends.
        """
        terms = self.client.terms  # of strangers: the host's trainer has those of its algorithms itself
        job = self.client.begin(client, self._round_idx, read_state(self.model) if terms else {}, mu=mu)
        job.learning_rate = trainer.args.learning_rate
        if terms:
            self.client.attach(trainer, job)

        def keep_update(result: Any) -> None:
            state = read_state(self.model) if terms else {}
            loss = float(result.training_loss)
            self._updates[client] = self.client.finish(job, state, int(result.global_step), loss)

        self.controls.watch(client, trainer)
        around.enter_context(self.guarded())
        watch_training(trainer, around, keep_update)
        if not self.plugin.is_idle:
            add_card_to_saves(trainer, self._card())

    def _average(self, call: HostCall, states: Mapping[int, Any], round_number: int) -> tuple[Any, Any]:
        """The host's average of the weighed ``states``, by client, loaded into the model.

        The host averages into ``arguments["global_dict"]`` itself, which is theta before and the new state after.

        Returns:
            The global state and SCAFFOLD's c, as the host returns them; as they are where every update was refused.
        """
        arguments = call.arguments
        host_states, clients = arguments["local_dict_list"], list(arguments["clients_this_round"])
        if any(states[client] is not host_states[client] for client in states):
            arguments["local_dict_list"] = [states.get(client, state) for client, state in enumerate(host_states)]
        arguments["clients_this_round"] = [client for client in clients if client in states]
        for client in set(clients).difference(states):
            self.controls.take_back(client)
        for client in states:
            self.client.keep(client, self._updates[client].keeps)
        session = self.open_session()
        if states and session.averages_one:
            arguments["clients_this_round"] = [next(iter(states))]
            arguments["sample_num_list"] = [1] * len(host_states)
        theta = {name: part.clone() for name, part in arguments["global_dict"].items() if session.changes_result}
        result: tuple[Any, Any] = call() if states else unchanged(arguments)
        if states and session.changes_result:
            fill(result[0], session.on_result(round_number, dict(result[0]), theta))
        with preserved_random_states():
            write_state(self.model, dict(result[0]))
        return result

    def _finish(self) -> None:
        """Save the final global model, whatever ``save_model_freq`` says, and write the summary."""
        with_adapter = hasattr(self.model, "peft_config")
        folder = Path(self.script_args.output_dir) / ("adapter" if with_adapter else "model")
        if running_processes().is_main:
            with preserved_random_states():
                save_global_model(self.model, self.tokenizer, folder, self._card())
        self.open_session().close()
        self.resuming.finish()
        logger.info("finished: %s holds metrics.jsonl, summary.json and %s/", self.script_args.output_dir, folder.name)

    def _card(self) -> str:
        """README.md of a saved model."""
        fed_args = self.fed_args
        settings = (
            f"{fed_args.fed_alg}, --aggregation {self.plugin.aggregation}, {fed_args.num_rounds} rounds, seed "
            f"{self.script_args.seed}, {'DPO' if self.data.is_dpo else 'SFT'} in OpenFedLLM"
        )
        shares = told_shares(self.open_session().client_datasets, self.plugin)
        base = self.script_args.model_name_or_path
        with_adapter = hasattr(self.model, "peft_config")
        return model_card(base, self.plugin.scenario, shares, settings, self.plugin.attack, with_adapter=with_adapter)
