"""One run of a patched OpenFedLLM: the session, and what the hooks hand to it."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping
from inspect import BoundArguments
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.client_training import ClientTraining, add_card_to_saves, preserved, watch_training
from fedbias_plugin.hosts.openfedllm.control_variates import ControlVariates
from fedbias_plugin.hosts.openfedllm.flags import one_line
from fedbias_plugin.hosts.openfedllm.host_rows import Formatting
from fedbias_plugin.hosts.openfedllm.resuming import SERVER_STATES, Resuming, unchanged
from fedbias_plugin.hosts.saving import model_card, save_global_model
from fedbias_plugin.session import BiasSession, HostRun
from fedbias_plugin.tracking.jsonl import METRICS_FILE
from fedbias_plugin.training.determinism import make_deterministic
from fedbias_plugin.training.random_states import preserved_random_states
from fedbias_plugin.training.states import write_state

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
        self._losses: dict[int, float] = {}

    @functools.cached_property
    def resuming(self) -> Resuming:
        """Checkpoints; made when the host has made its folder for a new run."""
        return Resuming(self.arguments, self.controls)

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
        if self.session is None:
            resumes = self.resuming.resumed is not None
            if not resumes and (Path(self.script_args.output_dir) / METRICS_FILE).exists():
                raise UserError(
                    f"{self.script_args.output_dir} holds the metrics.jsonl of another run; give another --output_dir."
                )
            flips = self.data.from_scenario and self.data.is_dpo
            partition = self.data.preference_partition(host_dataset) if flips else None
            refuses = not self.plugin.is_idle
            self.session = BiasSession(self.plugin, self._host_run(), partition=partition, refuses_updates=refuses)
            self.resuming.open(self.session)
            self._log_plan()
        return self.session

    def scenario_datasets(self, host_dataset: Any = None) -> list[Any]:
        """Every client's rows under ``--scenario``; ``host_dataset`` is what the host loaded, if it did."""
        datasets = self.data.deal(self.open_session(host_dataset).client_datasets)
        self.check_rows()
        return datasets

    def check_rows(self) -> None:
        """Refuse a client without a token to train on, as soon as the rows are known and before the model is loaded.

        Raises:
            UserError: naming the client.
        """
        if self.template is None or self.data.is_dpo:
            return
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.script_args.model_name_or_path, use_fast=False)
        except Exception:  # the host meets it too, in a moment
            return
        self.training.formatting, self.training.response_marker = self.template(tokenizer.eos_token)
        self.training.check_clients(tokenizer)

    def begin_round(self, round_idx: int) -> bool:
        """Round ``round_idx`` (from 0) begins; whether an earlier process finished it, so that nobody takes part."""
        self.resuming.begin_round(round_idx, self.open_session(), self.model, self.tokenizer)
        return self.resuming.is_finished(round_idx)

    def clients_chosen(self, clients: list[int]) -> None:
        """A round begins; ``clients`` take part."""
        self._clients, self._calls = list(clients), 0
        self.controls.new_round()

    def client_comes(self, dataset: Any, round_idx: int) -> None:
        """The client that holds ``dataset`` is next to train in round ``round_idx`` (from 0)."""
        self._round_idx = round_idx
        self._client = self.data.client_of(dataset, self._calls, self._clients or [0])
        self._calls += 1

    def build_trainer(self, factory: Callable[..., Any], call: BoundArguments) -> Any:
        """The host's trainer for the client at hand; before the first one the untouched model is measured."""
        arguments, client = call.arguments, self._client
        model, tokenizer, training_args = arguments["model"], arguments["tokenizer"], arguments["training_args"]
        self.training.set_pad_token(tokenizer)
        if self.model is None:
            self._begin(arguments)
        self.training.leave_wandb_to_the_plugin(training_args)
        rows = arguments["local_dataset"]
        self.training.set_length_and_seed(training_args, len(rows), client, self._round_idx)
        if self.training.finds_responses:
            self.training.give_rows(arguments, self.training.encode(rows, model, tokenizer, client))
        mu = getattr(self.fed_args, "prox_mu", None)
        mu = None if mu is None else self.open_session().proximal_mu(client, mu)
        arguments["fed_args"] = self.training.arguments_of_client(mu)
        self.controls.give(client, arguments)
        around = preserved(model)
        trainer = factory(*call.args, **call.kwargs)
        self.controls.watch(client, trainer)
        around.enter_context(self.guarded())
        watch_training(trainer, around, lambda result: self._trained(client, result))
        if not self.plugin.is_idle:
            add_card_to_saves(trainer, self._card())
        return trainer

    def aggregate(self, host_aggregate: Callable[..., Any], call: BoundArguments) -> Any:
        """Score and weigh the clients' states, let the host average, measure the global model, write the round."""
        arguments, session = call.arguments, self.open_session()
        clients, round_idx = list(arguments["clients_this_round"]), arguments["round_idx"]
        if self.resuming.is_finished(round_idx):
            return self.resuming.fill(call)
        host_states, counts = arguments["local_dict_list"], arguments["sample_num_list"]
        with preserved_random_states():
            states = session.before_aggregation(
                round_idx + 1,
                model=self.model,
                tokenizer=self.tokenizer,
                global_state=arguments["global_dict"],
                local_states={client: host_states[client] for client in clients},
                sample_counts={client: counts[client] for client in clients},
                train_losses=self._losses,
            )
        arguments["local_dict_list"] = _with_states(host_states, states)
        arguments["clients_this_round"] = [client for client in clients if client in states]
        for client in set(clients).difference(states):
            self.controls.take_back(client)
        result = host_aggregate(*call.args, **call.kwargs) if states else unchanged(call)
        with preserved_random_states():
            write_state(self.model, dict(result[0]))
            session.after_aggregation(round_idx + 1, model=self.model, tokenizer=self.tokenizer)
        self._losses = {}
        if round_idx + 1 == self.fed_args.num_rounds:
            self._finish()
        else:
            server = {name: arguments.get(name) for name in SERVER_STATES}
            self.resuming.keep(round_idx + 1, result[0], control=result[1], **server)
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
        session, global_dict = self.open_session(), arguments.get("global_dict")
        if self.resuming.resumed is not None:
            self.resuming.check_model(self.model, self.tokenizer)
            self.resuming.fill_first(self.model, global_dict)
            return
        with preserved_random_states():
            session.after_aggregation(0, model=self.model, tokenizer=self.tokenizer)
        if global_dict is not None:
            self.resuming.keep_first(session, self.model, self.tokenizer, global_dict)

    def _trained(self, client: int, result: Any) -> None:
        self._losses[client] = float(result.training_loss)

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
        shares = {dataset.client: dataset.biased_share for dataset in self.open_session().client_datasets}
        base = self.script_args.model_name_or_path
        with_adapter = hasattr(self.model, "peft_config")
        return model_card(base, self.plugin.scenario, shares, settings, self.plugin.attack, with_adapter=with_adapter)

    def _host_run(self) -> HostRun:
        script_args, fed_args = self.script_args, self.fed_args
        num_clients = fed_args.num_clients
        return HostRun(
            output_dir=Path(script_args.output_dir),
            fed_alg=fed_args.fed_alg,
            num_clients=num_clients,
            sample_clients=min(fed_args.sample_clients, num_clients),
            num_rounds=fed_args.num_rounds,
            seed=script_args.seed,
            template=script_args.template,
            seq_length=script_args.seq_length,
            config=self.arguments.config,
            prompt=self._prompt if self.template else None,
        )

    def _prompt(self, instruction: str) -> str:
        """The text up to where the response begins, in the host's template."""
        assert self.template is not None
        formatting, _ = self.template("")
        return formatting({"instruction": [instruction], "response": [""]})[0]

    def _log_plan(self) -> None:
        plugin = self.plugin
        if self.data.from_scenario and not self.data.needs_host_rows:
            logger.info(
                "--scenario %s deals every client %d rows; --dataset_name and --dataset_sample are not used.",
                *(plugin.scenario, plugin.client_samples),
            )
        if self.data.from_scenario and self.session is not None:
            shares = {client.client: client.biased_share for client in self.session.client_datasets}
            poisoned = [f"client {client} ({100 * share:.0f}%)" for client, share in shares.items() if share]
            logger.info("poisoned of %d clients: %s", len(shares), ", ".join(poisoned) or "none")
        if plugin.local_epochs is not None:
            logger.info("--local_epochs %d takes the place of --max_steps.", plugin.local_epochs)


def _with_states(host_states: list[Any], states: Mapping[int, Any]) -> list[Any]:
    """The list the host averages: its own, or a copy with the clients' states replaced."""
    if all(states[client] is host_states[client] for client in states):
        return host_states
    return [states.get(client, state) for client, state in enumerate(host_states)]
