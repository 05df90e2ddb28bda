"""The one object a training loop talks to.

A host trains clients and averages states as it always did, and calls the session at four places: for the clients'
data, for FedProx's mu, before it aggregates and after. Nothing here knows which host that is.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.aggregation.substitution import substitute
from fedbias_plugin.algorithms import local_client
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.assessor import Measurement
from fedbias_plugin.evaluation.live_model import LiveModel
from fedbias_plugin.evaluation.overlap import overlap_warnings
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.evaluation.results import model_identity, package_versions
from fedbias_plugin.evaluation.scorer import NonFiniteScore
from fedbias_plugin.inputs import announce_mini_data, load_assessor
from fedbias_plugin.memory import peak_memory_bytes
from fedbias_plugin.poisoning.loaders import ClientDataset, Partition, load_partition, partition_hash
from fedbias_plugin.progress import Progress
from fedbias_plugin.redaction import redacted, redacted_text
from fedbias_plugin.registry import build
from fedbias_plugin.run_description import HostRun, first_files, heldout_pairs, run_info
from fedbias_plugin.state import State
from fedbias_plugin.tracking.console import ConsoleTracker
from fedbias_plugin.tracking.recorder import RunRecorder
from fedbias_plugin.tracking.records import (
    ClientRecord,
    GlobalRecord,
    RoundRecord,
    RunInfo,
    Seconds,
    recorded_settings,
    weight_summary,
)
from fedbias_plugin.tracking.sanity import round_warnings
from fedbias_plugin.tracking.tracker import build_trackers
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.checks import accepted_updates, fault_warnings
from fedbias_plugin.updates.pipeline import Pipeline

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STATE_VERSION = 3


@dataclass
class _PendingRound:
    """What ``before_aggregation`` learned and ``after_aggregation`` writes."""

    clients: dict[int, ClientRecord] = field(default_factory=dict)
    mass: float | None = None
    warnings: list[str] = field(default_factory=list)
    train_seconds: float = 0.0
    assess_seconds: float = 0.0


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
    ) -> None:
        self._arguments = arguments
        self._refuses_updates = refuses_updates
        self._run = replace(run, config=redacted(run.config))
        self._rule: Rule = build("rule", arguments.aggregation, arguments)
        self._rule.check(1 if local_client(run.fed_alg) is not None else run.sample_clients)
        self._assessor = load_assessor(arguments, run.seed)
        if partition is None and arguments.scenario != "none":
            partition = load_partition(arguments, run.num_clients, run.seed)
        self._shares = {client.client: client.biased_share for client in partition.clients} if partition else {}
        self._pipeline = Pipeline(arguments, run, self._shares)
        benchmarks = self._assessor.benchmarks if self._assessor else {}
        announced = announce_mini_data(benchmarks, partition.sources if partition else {})
        overlaps = overlap_warnings(partition, benchmarks)
        self._partition, warnings = self._pipeline.on_data(partition, benchmarks)
        self._data_warnings = [*announced, *overlaps, *warnings]
        self._pending = _PendingRound()
        self._mark = time.perf_counter()
        trackers = build_trackers(arguments.track, arguments, extra=[ConsoleTracker(said=announced)])
        self._recorder = RunRecorder(run.output_dir, trackers)
        self._live = LiveModel(
            self._assessor,
            heldout_pairs(run, self._partition),
            rouge_samples=arguments.rouge_samples,
            seq_length=run.seq_length,
            batch_tokens=arguments.bias_batch_tokens,
            progress=progress or Progress(),
        )

    @property
    def client_datasets(self) -> list[ClientDataset]:
        """Rows of every client, by client id; empty for ``--scenario none``, where the host brings its own."""
        return [] if self._partition is None else list(self._partition.clients)

    def proximal_mu(self, client: int, mu: float) -> float:
        """The mu that a client trains FedProx with: ``mu``, or what the rule makes of it (eq. 6 of BAMA)."""
        return self._rule.client_mu(client, mu, self._run.sample_clients)

    def before_aggregation(
        self,
        round_number: int,
        *,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        global_state: State,
        local_states: Mapping[int, State],
        sample_counts: Mapping[int, int],
        train_losses: Mapping[int, float] | None = None,
    ) -> Mapping[int, State]:
        """Measure every client's state on the probe items, weigh it, and return the states the host is to average.

        Args:
            round_number: 1 for the first trained round.
            model: the live model; each state is loaded into it to be scored, then the global state.
            tokenizer: the model's.
            global_state: theta, name -> tensor; not modified.
            local_states: client id -> theta_i, for exactly the clients of this round; not modified.
            sample_counts: client id -> n_i.
            train_losses: client id -> mean training loss of the round, nats per token.

        Returns:
            client id -> state, without the clients whose update was refused; empty when all were, and the global state
            is to stay. With the host's own weighting the very objects that came in, so that its result stays bit for
            bit the same; otherwise one shared state (see ``aggregation/substitution.py``).

        Raises:
            UserError: an update cannot be used, and ``--on_bad_update`` is ``stop``; client and fault are named.
        """
        start = time.perf_counter()
        self._pending = _PendingRound(train_seconds=start - self._mark)
        losses = train_losses or {}
        updates = {
            client: Update(client, state, sample_counts[client], losses.get(client))
            for client, state in local_states.items()
        }
        accepted = self._receive(round_number, updates, global_state, model, tokenizer)
        weighting = self._weigh(global_state, accepted)
        self._pending.warnings = fault_warnings(updates, accepted)
        self._pending.clients = {
            client: self._client_record(update, weighting, refused=None if client in accepted else update.fault)
            for client, update in updates.items()
        }
        self._pending.mass = weighting.mass
        self._mark = time.perf_counter()
        self._pending.assess_seconds = self._mark - start
        if weighting.state is not None:
            return dict.fromkeys(accepted, weighting.state)
        states = {client: update.state for client, update in accepted.items()}
        return states if weighting.factors is None else substitute(global_state, states, weighting.factors)

    def _receive(
        self,
        number: int,
        updates: dict[int, Update],
        theta: State,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
    ) -> dict[int, Update]:
        """The updates that can be used, by client id, after the stages, measured; ``updates`` keeps them all."""
        on_bad_update = self._arguments.on_bad_update if self._refuses_updates else "use"
        self._pipeline.receive(updates, theta, number)
        accepted = accepted_updates(number, updates, on_bad_update)
        if "bias" in self._rule.needs or self._is_measured(number):
            states = {client: update.state for client, update in accepted.items()}
            title = f"round {number}: score clients"
            measured, broken = self._live.assess_clients(title, model, tokenizer, theta, states)
            for client, measurement in measured.items():
                updates[client].measured = measurement
            for client, fault in broken.items():
                updates[client].fault = fault
            accepted = accepted_updates(number, accepted, on_bad_update)
        return accepted

    def after_aggregation(
        self, round_number: int, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> RoundRecord:
        """Measure the global model, which ``model`` holds now, and write the round to every tracker.

        Call it with ``round_number=0`` before any training to record the untouched model.
        """
        start = time.perf_counter()
        measured, item_scores = self._evaluate(round_number, model, tokenizer)
        if not self._recorder.is_open:
            prefix_token = self._live.prefix_token(model, tokenizer)
            files = first_files(
                self._run,
                model_identity(model),
                prefix_token,
                self._probe_record(),
                self._partition,
                self._pipeline.attackers,
            )
            self._recorder.open(files, self._run_info(), writes=running_processes().is_main)
        pending, self._pending = self._pending, _PendingRound()
        weights = {c: record.weight for c, record in pending.clients.items() if record.weight is not None}
        effective_clients, weight_on_poisoned = weight_summary(weights, self._shares)
        record = RoundRecord(
            round=round_number,
            global_=measured,
            clients=pending.clients,
            aggregation=self._arguments.aggregation,
            aggregation_mass=pending.mass,
            effective_clients=effective_clients,
            weight_on_poisoned=weight_on_poisoned,
            seconds=Seconds(
                train=pending.train_seconds,
                assess=pending.assess_seconds,
                aggregate=start - self._mark if pending.clients else 0.0,
                evaluate=time.perf_counter() - start,
            ),
            peak_memory_bytes=peak_memory_bytes(),
            warnings=[*self._data_warnings, *pending.warnings],
            settings=recorded_settings(self._run.config) if round_number == 0 else None,
        )
        record.warnings += [*round_warnings(record), *self._rule.warnings(record, self._arguments.bama_alpha)]
        self._recorder.log_round(record, item_scores)
        self._mark = time.perf_counter()
        return record

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: last weights, hashes of its data, where its records end. JSON-ready."""
        return {
            "version": STATE_VERSION,
            "rule": self._rule.state_dict(),
            "stages": self._pipeline.state_dict(),
            "data": self._data_hashes,
            "records": self._recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` in the same output folder; later records there are taken back.

        Raises:
            UserError: the state is of another version or of a run with other data, or the records are damaged.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(f"The session state has version {state.get('version')}, this plugin reads {STATE_VERSION}.")
        now, then = self._data_hashes, state["data"]
        changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if changed:
            raise UserError(
                f"The run to resume had other {' and '.join(changed)}: give it the data and the seed it began with."
            )
        self._rule.load_state_dict(state["rule"])
        self._pipeline.load_state_dict(state["stages"])
        writes = running_processes().is_main
        self._recorder.resume(state["records"], self._run_info(), package_versions(), writes=writes)
        self._mark = time.perf_counter()

    def close(self, failure: str | None = None) -> None:
        """Write ``summary.json`` and close every tracker; safe to call twice and before any round.

        Args:
            failure: one line that says why the run did not finish; trackers mark it failed and no summary is written.
        """
        self._recorder.close(None if failure is None else redacted_text(failure))

    def _run_info(self) -> RunInfo:
        return run_info(self._arguments, self._run, self._shares)

    def _probe_record(self) -> dict[str, Any]:
        return self._assessor.probe_record() if self._assessor else {}

    @functools.cached_property
    def _data_hashes(self) -> dict[str, str]:
        """Part of the data -> hash: the items of each benchmark with their split, and the clients' rows."""
        parts = self._probe_record().items()
        hashes = {f"{name} items": f"{part['sha256']} {part['probe_ids_sha256']}" for name, part in parts}
        return hashes | ({"training rows": partition_hash(self._partition)} if self._partition else {})

    def _is_measured(self, round_number: int) -> bool:
        every = self._arguments.bias_eval_every
        return round_number % every == 0 or round_number == self._run.num_rounds

    def _weigh(self, global_state: State, updates: Mapping[int, Update]) -> Weighting:
        if not updates:
            return Weighting({}, factors=None, mass=None)
        return self._rule.weigh(ClientReports.of(updates, global_state, self._run.fed_alg))

    def _client_record(self, update: Update, weighting: Weighting, refused: str | None) -> ClientRecord:
        measured = update.measured or Measurement()
        return ClientRecord(
            poisoned_share=self._shares.get(update.client),
            rows=update.rows,
            train_loss=update.loss,
            update_norm=update.norm,
            crows_pairs=measured.results.get("crows_pairs"),
            stereoset=measured.results.get("stereoset"),
            bias_score=measured.bias_score,
            weight=weighting.weights.get(update.client),
            attack=self._arguments.attack if update.client in self._pipeline.attackers else None,
            refused=refused,
            extra=dict(update.extra),
        )

    def _evaluate(
        self, round_number: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[GlobalRecord, dict[str, Any]]:
        """The global model on everything, and the scores of every item by benchmark."""
        if not self._is_measured(round_number):
            return GlobalRecord(), {}
        title = f"round {round_number}: score the global model"
        try:
            measured, loss = self._live.evaluate(title, model, tokenizer, is_original=round_number == 0)
        except NonFiniteScore as error:
            raise UserError(f"The global model after round {round_number} is broken. {error}") from None
        record = GlobalRecord(
            crows_pairs=measured.results.get("crows_pairs"),
            stereoset=measured.results.get("stereoset"),
            bias_score=measured.bias_score,
            heldout_loss=loss,
            rouge_l=self._live.rouge_l(f"round {round_number}: write responses", model, tokenizer),
        )
        return record, measured.item_scores
