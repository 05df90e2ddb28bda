"""The one object a training loop talks to.

A host trains clients and averages states as it always did, and calls the session at four places: for the clients'
data, for FedProx's mu, before it aggregates and after. Nothing here knows which host that is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.rules import ClientReports, Weighting, build_rule
from fedbias_plugin.aggregation.substitution import substitute, update_norm
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.assessor import Measurement
from fedbias_plugin.evaluation.live_model import LiveModel
from fedbias_plugin.evaluation.overlap import overlap_warnings
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.evaluation.results import model_identity, package_versions
from fedbias_plugin.inputs import announce_mini_data, load_assessor
from fedbias_plugin.memory import peak_memory_bytes
from fedbias_plugin.poisoning.loaders import ClientDataset, Partition, load_partition, manifest, partition_hash
from fedbias_plugin.state import State
from fedbias_plugin.tracking.console import ConsoleTracker
from fedbias_plugin.tracking.progress import Progress
from fedbias_plugin.tracking.recorder import RunRecorder
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord, RunInfo, Seconds, weight_summary
from fedbias_plugin.tracking.sanity import round_warnings
from fedbias_plugin.tracking.tracker import build_trackers
from fedbias_plugin.training.templates import TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STATE_VERSION = 2


@dataclass(frozen=True)
class HostRun:
    """What the session must know of the host's run.

    Attributes:
        output_dir: the run's folder; it need not exist yet.
        fed_alg: server algorithm (``fedavg``, ``scaffold``, ...).
        num_clients: clients in the federation.
        sample_clients: clients that take part in a round.
        num_rounds: rounds to train.
        seed: of roles, rows, probe items and bootstrap.
        template: name of the prompt template.
        seq_length: tokens of a training row.
        config: every resolved argument, JSON-ready, to be stored with the run.
    """

    output_dir: Path
    fed_alg: str
    num_clients: int
    sample_clients: int
    num_rounds: int
    seed: int
    template: str = "alpaca"
    seq_length: int = 512
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _PendingRound:
    """What ``before_aggregation`` learned and ``after_aggregation`` writes."""

    clients: dict[int, ClientRecord] = field(default_factory=dict)
    mass: float | None = None
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

    Raises:
        UserError: a data set is missing, damaged or too small, or an argument does not fit the host's run.
    """

    def __init__(
        self,
        arguments: BiasArguments,
        run: HostRun,
        progress: Progress | None = None,
        partition: Partition | None = None,
    ) -> None:
        self._arguments = arguments
        self._run = run
        self._rule = build_rule(arguments)
        self._assessor = load_assessor(arguments, run.seed)
        if partition is None and arguments.scenario != "none":
            partition = load_partition(arguments, run.num_clients, run.seed)
        self._partition = partition
        sources = partition.sources if partition else {}
        benchmarks = self._assessor.benchmarks if self._assessor else {}
        self._data_warnings = [*announce_mini_data(benchmarks, sources), *overlap_warnings(partition, benchmarks)]
        self._shares = {client.client: client.biased_share for client in self.client_datasets}
        self._last_weights: dict[int, float] = {}
        self._history: list[RoundRecord] = []
        self._pending = _PendingRound()
        self._mark = time.perf_counter()
        self._recorder = RunRecorder(run.output_dir, build_trackers(arguments.track, extra=[ConsoleTracker()]))
        self._live = LiveModel(
            self._assessor,
            self._heldout_pairs(),
            seq_length=run.seq_length,
            batch_tokens=arguments.bias_batch_tokens,
            progress=progress or Progress(),
        )

    @property
    def client_datasets(self) -> list[ClientDataset]:
        """Rows of every client, by client id; empty for ``--scenario none``, where the host brings its own."""
        return [] if self._partition is None else list(self._partition.clients)

    def proximal_mu(self, client: int, mu: float) -> float:
        """Eq. 6: the mu that client i trains FedProx with.

        Under ``--aggregation bama`` mu w_i, with the weight of the last round in which the client was assessed and
        1/C (C clients a round) before that; otherwise ``mu``.
        """
        if not self._rule.needs_bias_scores:
            return mu
        return mu * self._last_weights.get(client, 1.0 / self._run.sample_clients)

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
            client id -> state. With the host's own weighting the very objects that came in, so that its result stays
            bit for bit the same; otherwise one shared state (see ``aggregation/substitution.py``).
        """
        start = time.perf_counter()
        self._pending = _PendingRound(train_seconds=start - self._mark)
        measurements = {}
        if self._rule.needs_bias_scores or self._is_measured(round_number):
            title = f"round {round_number}: score clients"
            measurements = self._live.assess_clients(title, model, tokenizer, global_state, local_states)
        reports = ClientReports(
            self._run.fed_alg,
            sample_counts={client: sample_counts[client] for client in local_states},
            bias_scores={
                client: found.bias_score for client, found in measurements.items() if found.bias_score is not None
            },
            global_state=global_state,
            local_states=local_states,
        )
        weighting = self._rule.weigh(reports)
        self._last_weights.update(weighting.weights)
        self._pending.clients = self._client_records(reports, weighting, measurements, train_losses or {})
        self._pending.mass = weighting.mass
        self._mark = time.perf_counter()
        self._pending.assess_seconds = self._mark - start
        if weighting.factors is None:
            return local_states
        return substitute(global_state, local_states, weighting.factors)

    def after_aggregation(
        self, round_number: int, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> RoundRecord:
        """Measure the global model, which ``model`` holds now, and write the round to every tracker.

        Call it with ``round_number=0`` before any training to record the untouched model.
        """
        start = time.perf_counter()
        measured, item_scores = self._evaluate(round_number, model, tokenizer)
        if not self._recorder.is_open:
            files = self._first_files(model, tokenizer)
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
            warnings=list(self._data_warnings),
        )
        record.warnings += round_warnings(record, alpha=self._arguments.bama_alpha, lambda_=self._arguments.bama_lambda)
        self._history.append(record)
        self._recorder.log_round(record, item_scores)
        self._mark = time.perf_counter()
        return record

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know: last weights, hashes of its data, where its records end. JSON-ready."""
        return {
            "version": STATE_VERSION,
            "last_weights": {str(client): weight for client, weight in self._last_weights.items()},
            "data": self._data_hashes(),
            "records": self._recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` in the same output folder; later records there are taken back.

        Raises:
            UserError: the state is of another version or of a run with other data, or the records are damaged.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(f"The session state has version {state.get('version')}, this plugin reads {STATE_VERSION}.")
        now, then = self._data_hashes(), state["data"]
        changed = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
        if changed:
            raise UserError(
                f"The run to resume had other {' and '.join(changed)}: give it the data and the seed it began with."
            )
        self._last_weights = {int(client): weight for client, weight in state["last_weights"].items()}
        writes = running_processes().is_main
        self._history = self._recorder.resume(state["records"], self._run_info(), package_versions(), writes=writes)
        self._mark = time.perf_counter()

    def close(self, failure: str | None = None) -> None:
        """Write ``summary.json`` and close every tracker; safe to call twice and before any round.

        Args:
            failure: one line that says why the run did not finish; trackers mark it failed and no summary is written.
        """
        self._recorder.close(self._history, failure)

    def _data_hashes(self) -> dict[str, str]:
        """Part of the data -> hash: the items of each benchmark with their split, and the clients' rows."""
        record = self._assessor.probe_record() if self._assessor else {}
        hashes = {f"{name} items": f"{part['sha256']} {part['probe_ids_sha256']}" for name, part in record.items()}
        return hashes | ({"training rows": partition_hash(self._partition)} if self._partition else {})

    def _first_files(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Name -> content of the files that say, before training, what the run is."""
        run, probe = self._run, self._assessor.probe_record() if self._assessor else {}
        data = {name: {key: part[key] for key in part if key != "probe_ids"} for name, part in probe.items()}
        files: dict[str, Any] = {}
        if self._partition is not None:
            files["manifest.json"] = manifest(self._partition)
            data |= files["manifest.json"]["sources"]
        if probe:
            files["probe.json"] = probe
        files["run.json"] = {
            "config": dict(run.config),
            "versions": package_versions(),
            "model": model_identity(model),
            "prefix_token": self._live.prefix_token(model, tokenizer),
            "seed": run.seed,
            "poisoned_shares": {str(client): share for client, share in self._shares.items()},
            "data": data,
        }
        return files

    def _run_info(self) -> RunInfo:
        arguments, run = self._arguments, self._run
        weighting = f"-{arguments.bama_weighting}" if arguments.aggregation == "bama" else ""
        job = f"{run.fed_alg}-{arguments.aggregation}{weighting}"
        return RunInfo(
            run_name=f"{arguments.scenario}-{job}-seed{run.seed}",
            output_dir=run.output_dir,
            config=run.config,
            group=arguments.scenario,
            job_type=job,
            wandb_project=arguments.wandb_project,
            wandb_mode=arguments.wandb_mode or os.environ.get("WANDB_MODE") or "online",
            num_clients=run.num_clients,
            num_rounds=run.num_rounds,
            poisoned_shares=self._shares,
        )

    def _is_measured(self, round_number: int) -> bool:
        every = self._arguments.bias_eval_every
        return round_number % every == 0 or round_number == self._run.num_rounds

    def _client_records(
        self,
        reports: ClientReports,
        weighting: Weighting,
        measurements: Mapping[int, Measurement],
        train_losses: Mapping[int, float],
    ) -> dict[int, ClientRecord]:
        records = {}
        for client, state in reports.local_states.items():
            measured = measurements.get(client, Measurement())
            records[client] = ClientRecord(
                poisoned_share=self._shares.get(client),
                rows=reports.sample_counts[client],
                train_loss=train_losses.get(client),
                update_norm=update_norm(reports.global_state, state),
                crows_pairs=measured.results.get("crows_pairs"),
                stereoset=measured.results.get("stereoset"),
                bias_score=measured.bias_score,
                weight=weighting.weights.get(client),
            )
        return records

    def _evaluate(
        self, round_number: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> tuple[GlobalRecord, dict[str, Any]]:
        """The global model on everything, and the scores of every item by benchmark."""
        if not self._is_measured(round_number):
            return GlobalRecord(), {}
        title = f"round {round_number}: score the global model"
        measured, loss = self._live.evaluate(title, model, tokenizer)
        record = GlobalRecord(
            crows_pairs=measured.results.get("crows_pairs"),
            stereoset=measured.results.get("stereoset"),
            bias_score=measured.bias_score,
            heldout_loss=loss,
        )
        return record, measured.item_scores

    def _heldout_pairs(self) -> list[tuple[str, str]]:
        template = TEMPLATES.get(self._run.template)
        if self._partition is None or template is None:
            return []
        return [(template.prompt(row.instruction), row.response) for row in self._partition.heldout]
