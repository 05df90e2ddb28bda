"""The one object a training loop talks to.

A host trains clients and averages states as it always did, and calls the session at five places: for the clients'
data, for FedProx's mu, before it aggregates, with the result, and after. Nothing here knows which host that is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import load_inputs
from fedbias_plugin.federation.ledger import Ledger
from fedbias_plugin.federation.live_model import LiveModel
from fedbias_plugin.federation.run_description import HostRun, first_files, run_info, run_versions
from fedbias_plugin.federation.server import Server, Weighed
from fedbias_plugin.memory import peak_memory_bytes
from fedbias_plugin.metrics.base import Block
from fedbias_plugin.metrics.client_tests import own_scores
from fedbias_plugin.metrics.emulator import Emulator, emulator_block
from fedbias_plugin.metrics.results import model_identity
from fedbias_plugin.progress import Progress
from fedbias_plugin.redaction import redacted, redacted_text
from fedbias_plugin.scoring.processes import running_processes
from fedbias_plugin.state import State
from fedbias_plugin.tracking.console import ConsoleTracker
from fedbias_plugin.tracking.recorder import RunRecorder
from fedbias_plugin.tracking.records import GlobalRecord, RoundRecord, Seconds, recorded_settings
from fedbias_plugin.tracking.sanity import round_warnings
from fedbias_plugin.tracking.tracker import build_trackers
from fedbias_plugin.tracking.weights import weight_summary
from fedbias_plugin.training.fingerprint import tokenizer_fingerprints
from fedbias_plugin.updates.base import Update

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATE_VERSION = 4


class BiasSession:
    """Poisoned data in, weighted states and one record a round out.

    The constructor reads and checks all data and writes nothing; the first round writes the run's files. Rounds are
    numbered from 1; round 0 is the untouched model.

    Args:
        arguments: the plugin's flags.
        run: what the host does.
        progress: the host's progress bars; none are drawn without it.
        partition: every client's rows, where they are not the clean and biased rows that ``arguments`` ask for.
        refuses_updates: False for a host's run that must not be changed: a faulty update is recorded and used.
        elsewhere: client id -> what is known of its rows, of those that bring their own (a node of a federation).

    Raises:
        UserError: a data set is missing, damaged or too small, or an argument does not fit the host's run.
    """

    def __init__(
        self,
        arguments: BiasArguments,
        run: HostRun,
        progress: Progress | None = None,
        partition: Partition | None = None,
        *,
        refuses_updates: bool = True,
        elsewhere: Mapping[int, ClientDataset] | None = None,
    ) -> None:
        self._arguments, self._run = arguments, replace(run, config=redacted(run.config))
        self._inputs = load_inputs(arguments, run, partition, elsewhere)
        how: Any = {"batch_tokens": arguments.bias_batch_tokens, "dtype": arguments.scoring_dtype}
        self._live = LiveModel(self._inputs.suite, **how, progress=progress or Progress())
        self._server = Server(arguments, run, self._inputs, self._live, refuses_updates=refuses_updates)
        trackers = build_trackers(arguments.track, arguments, extra=[ConsoleTracker(said=self._inputs.said)])
        self._recorder = RunRecorder(run.output_dir, trackers)
        self._weighed, self._seconds, self._ledger = Weighed(), Seconds(), Ledger()
        self._own_scores: dict[str, dict[int, float]] = {}
        self._mark = time.perf_counter()

    @property
    def client_datasets(self) -> list[ClientDataset]:
        """Rows of every client, by client id; empty for ``--scenario none``, where the host brings its own."""
        return [] if self._inputs.partition is None else list(self._inputs.partition.clients)

    @property
    def partition(self) -> Partition | None:
        """Every row of the run; None for ``--scenario none``."""
        return self._inputs.partition

    def proximal_mu(self, client: int, mu: float) -> float:
        """The mu that a client trains FedProx with: ``mu``, or what the rule makes of it (eq. 6 of BAMA)."""
        return self._server.rule.client_mu(client, mu, self._run.sample_clients)

    def receive(
        self,
        round_number: int,
        updates: dict[int, Update],
        theta: State,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        are_sent: bool = False,
        absent: Mapping[int, str] | None = None,
    ) -> Mapping[int, State]:
        """Take the updates through the stages, measure and weigh them, and return the states the host is to average.

        Args:
            round_number: 1 for the first trained round.
            updates: client id -> update, for exactly the clients of this round; entries are replaced.
            theta: the global state, name -> tensor; not modified.
            model: the live model; each state is loaded into it to be scored, then theta.
            tokenizer: the model's.
            are_sent: whether the client half of every stage is behind them, as where clients are other processes.
            absent: client id -> why it sent nothing, for clients of the round without an update.

        Returns:
            client id -> state, without the clients whose update was refused; empty when all were, and theta is to stay.
            With the host's own weighting the very objects that came in, so that its result stays bit for bit the same;
            otherwise one shared state (see ``aggregation/substitution.py``).

        Raises:
            UserError: an update cannot be used, and ``--on_bad_update`` is ``stop``; client and fault are named.
        """
        start = time.perf_counter()
        self._seconds = Seconds(train=start - self._mark)
        measured = self._arguments.measures_in(round_number, self._run.num_rounds)
        self._weighed = self._server.receive(
            *(round_number, updates, theta, model, tokenizer),
            is_measured=measured,
            are_sent=are_sent,
            absent=absent,
            own_scores=self._own_scores,
        )
        self._mark = time.perf_counter()
        self._seconds.assess = self._mark - start
        return self._weighed.states

    @property
    def run(self) -> HostRun:
        """What the host does, as it said."""
        return self._run

    @property
    def weights(self) -> dict[int, float]:
        """Client id -> weight of the round that is being averaged, of those that have one."""
        return self._weighed.weights

    @property
    def averages_one(self) -> bool:
        """Whether the host averages one of the states that :meth:`receive` gave, with one row (:class:`Weighting`)."""
        return self._weighed.alone

    @property
    def kept_by_stages(self) -> tuple[str, ...]:
        """Names of the states that stages have a client keep; the host gives them back (:attr:`Update.kept`)."""
        return self._inputs.pipeline.keeps

    @property
    def changes_result(self) -> bool:
        """Whether a stage may change what the host has averaged; theta must be as it was then."""
        return self._inputs.pipeline.changes_result

    @property
    def changes_base(self) -> bool:
        """Whether a stage changes weights that are not trained: an adapter alone is not the model then."""
        return self._inputs.pipeline.changes_base

    def on_model(self, model: PreTrainedModel) -> None:
        """Let the stages see the live model of a resumed run, which holds its global state."""
        self._inputs.pipeline.on_model(model)

    def on_result(self, round_number: int, new: State, theta: State, **model_and_tokenizer: Any) -> State:
        """What the host is to take for its new global state: ``new``, its average, or what a stage makes of it (with
        ``model`` and ``tokenizer`` by steps with the model, which holds any state afterwards)."""
        new, found = self._server.on_result(new, theta, round_number, **model_and_tokenizer)
        self._weighed.extra |= found
        return new

    @property
    def measures_own_models(self) -> bool:
        """Whether the last round wants each client's own model, trained alone (:meth:`of_own_models`)."""
        return bool(self._inputs.suite.of_own_models)

    def of_own_models(
        self,
        states: Iterable[tuple[int, State]],
        theta: State,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[str, Block]:
        """What the metrics of own models show beside the last round's; ``states``: client id -> its own model."""
        assert self._inputs.tests is not None, "such a metric asks for test rows"
        scores = self._live.own_models(model, tokenizer, theta, states, self._inputs.tests)
        asked, seed = self._inputs.suite.of_own_models, self._run.seed
        return {metric.name: metric.own_block(scores, self.client_datasets, seed=seed) for metric in asked}

    def after_aggregation(
        self,
        round_number: int,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        of_clients: PreTrainedModel | None = None,
        beside: Mapping[str, Block] | None = None,
    ) -> RoundRecord:
        """Measure the global model, which ``model`` holds now, and write the round to every tracker.

        Call it with ``round_number=0`` before any training to record the untouched model. ``of_clients`` is what the
        clients train in, where it is another model; it is measured too. ``beside`` are numbers of other models, to be
        recorded with those of this one.
        """
        self.on_model(model)
        start = time.perf_counter()
        is_measured = self._arguments.measures_in(round_number, self._run.num_rounds)
        measured = self._live.evaluate(round_number, model, tokenizer, whole=is_measured)
        self._own_scores = own_scores(measured.metrics)
        if of_clients is not None and is_measured:
            of_emulator = self._live.evaluate(round_number, of_clients, tokenizer, is_global=False)
            report = self._inputs.suite.report_items
            measured.metrics |= {Emulator.name: emulator_block(of_emulator, measured, report, seed=self._run.seed)}
        measured.metrics |= beside or {}
        # Where clients train in another model, theta's scores are to be of that one.
        of_rule = self._server.after(measured.item_scores if of_clients is None else {})
        if not self._recorder.is_open:
            prefix_token = self._live.prefix_token(model, tokenizer)
            identities = model_identity(model), tokenizer_fingerprints(tokenizer)
            files = first_files(self._run, *identities, prefix_token, self._inputs, self._live.choice)
            self._recorder.open(files, self._run_info, writes=running_processes().is_main)
        weighed, self._weighed = self._weighed, Weighed()
        seconds, self._seconds = self._seconds, Seconds()
        seconds.aggregate = start - self._mark if weighed.clients else 0.0
        seconds.evaluate = time.perf_counter() - start
        effective_clients, weight_on_poisoned = weight_summary(weighed.weights, self._inputs.shares)
        record = RoundRecord(
            round=round_number,
            global_=GlobalRecord(measured.metrics, measured.bias_score),
            clients=weighed.clients,
            aggregation=self._arguments.aggregation,
            aggregation_mass=weighed.mass,
            effective_clients=effective_clients,
            weight_on_poisoned=weight_on_poisoned,
            learning_rate=weighed.learning_rate,
            payload=self._ledger.add(weighed.clients),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            warnings=[*self._inputs.warnings, *weighed.warnings],
            extra=weighed.extra | of_rule,
            settings=recorded_settings(self._run.config) if round_number == 0 else None,
        )
        record.warnings += round_warnings(record)
        record.warnings += self._server.rule.warnings(record, self._arguments.bama_alpha)
        self._recorder.log_round(record, measured.item_scores)
        self._mark = time.perf_counter()
        return record

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: rule, stages, hashes of its data, where its records end. JSON-ready."""
        parts = {"data": self._inputs.hashes, "records": self._recorder.state_dict()}
        parts |= {"payload": self._ledger.state_dict(), "own_scores": self._own_scores, **self._live.state_dict()}
        return {"version": STATE_VERSION, **self._server.state_dict(), **parts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` in the same output folder; later records there are taken back.

        Raises:
            UserError: the state is of another version or of a run with other data, or the records are damaged.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(f"The session state has version {state.get('version')}, this plugin reads {STATE_VERSION}.")
        now, then = self._inputs.hashes, state["data"]
        changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if changed:
            raise UserError(
                f"The run to resume had other {' and '.join(changed)}: give it the data and the seed it began with."
            )
        self._server.load_state_dict(state)
        self._live.load_state_dict(state)
        self._ledger.load_state_dict(state.get("payload", {}))
        own = state.get("own_scores", {}).items()
        self._own_scores = {name: {int(client): value for client, value in one.items()} for name, one in own}
        writes = running_processes().is_main
        self._recorder.resume(state["records"], self._run_info, run_versions(self._run.config), writes=writes)
        self._mark = time.perf_counter()

    def close(self, failure: str | None = None) -> None:
        """Write ``summary.json`` and close every tracker; safe to call twice and before any round.

        With ``failure``, a line that says why the run did not finish, trackers mark it failed without a summary.
        """
        self._recorder.close(None if failure is None else redacted_text(failure))

    @property
    def _run_info(self) -> Any:
        return run_info(self._arguments, self._run, self._inputs.shares)
