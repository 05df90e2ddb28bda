"""The server's side of a round, the same on every host: receives updates, measures them, weighs them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.aggregation.substitution import substitute
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import local_client
from fedbias_plugin.federation.inputs import Inputs
from fedbias_plugin.federation.ledger import is_federated, payload_of, state_name
from fedbias_plugin.federation.live_model import LiveModel
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.metrics.suite import Measurement
from fedbias_plugin.registry import build
from fedbias_plugin.state import State
from fedbias_plugin.tracking.records import MISSING, ClientRecord
from fedbias_plugin.updates.base import ServerSide, Update
from fedbias_plugin.updates.checks import accepted_updates, fault_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


HOW_MEASURED = {
    "stereoset": "--bias_benchmarks with stereoset and a --bama_stereoset_fraction > 0",
    "heldout_loss": "--heldout_samples > 0 and a --template of the plugin's",
    "heldout_accuracy": "with --task classify --heldout_samples > 0",
}
"""Metric that clients may be compared by -> what has it measured."""


@dataclass
class Weighed:
    """A round as the server sees it before it averages.

    Attributes:
        states: client id -> state that the host is to average, without refused updates.
        clients: client id -> what is recorded of it, refused ones too.
        mass: sum of the factors in effect, see :class:`Weighting`.
        learning_rate: of all clients; None where it is not known or not the same.
        warnings: what a reader of the round must know.
        alone: whether the host averages one of ``states``, with one row, see :class:`Weighting`.
        extra: further numbers of the round, by name.
    """

    states: Mapping[int, State] = field(default_factory=dict)
    clients: dict[int, ClientRecord] = field(default_factory=dict)
    mass: float | None = None
    learning_rate: float | None = None
    warnings: list[str] = field(default_factory=list)
    alone: bool = False
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def weights(self) -> dict[int, float]:
        """Client id -> weight, of those that have one."""
        return {client: record.weight for client, record in self.clients.items() if record.weight is not None}


class Server:
    """Stages, checks, measuring and the rule of one run.

    Args:
        arguments: the plugin's flags.
        run: what the host does.
        inputs: rows, metrics and stages.
        live: measures states in the host's model.
        refuses_updates: False for a host's run that must not be changed: a faulty update is recorded and used.

    Raises:
        UserError: the rule does not fit the run.
    """

    def __init__(
        self, arguments: BiasArguments, run: HostRun, inputs: Inputs, live: LiveModel, *, refuses_updates: bool = True
    ) -> None:
        self._arguments, self._run, self._inputs, self._live = arguments, run, inputs, live
        self._on_bad_update = arguments.on_bad_update if refuses_updates else "use"
        self.rule: Rule = build("rule", arguments.aggregation, arguments)
        self.rule.check(1 if local_client(run.fed_alg) is not None else run.sample_clients)
        self._compared = self._first_measured(self.rule.compares)
        self._check_own()

    def receive(
        self,
        number: int,
        updates: dict[int, Update],
        theta: State,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        is_measured: bool,
        are_sent: bool = False,
        absent: Mapping[int, str] | None = None,
        own_scores: Mapping[str, Mapping[int, float]] | None = None,
    ) -> Weighed:
        """Take a round's ``updates`` (by client id) through the stages, measure what is asked for, and weigh them.

        Args:
            number: the round, from 1.
            updates: what the clients trained; entries are replaced.
            theta: the global state; not modified.
            model: the live model; it holds theta afterwards.
            tokenizer: the model's.
            is_measured: whether clients are measured though the rule does not need it.
            are_sent: whether the client half of every stage is behind them, as where clients are other processes.
            absent: client id -> why it sent nothing, for clients of the round without an update.
            own_scores: metric -> client id -> value of theta on that client's own test rows.

        Raises:
            UserError: an update cannot be used, and ``--on_bad_update`` is ``stop``; client and fault are named.
        """
        pipeline = self._inputs.pipeline
        if not are_sent:
            updates |= {c: pipeline.at_client(update, theta, number, len(updates)) for c, update in updates.items()}
        payloads: dict[int, dict[str, dict[str, int]]] = {}
        if is_federated(self._run):
            payloads = {client: payload_of(update, theta, state_name(model)) for client, update in updates.items()}
        pipeline.at_server(updates, theta, number)
        accepted = accepted_updates(number, updates, self._on_bad_update)
        of_global = Measurement()
        if is_measured or self._compared or self.rule.needs & {"bias", *self._inputs.suite.of_clients}:
            states = {client: update.state for client, update in accepted.items()}
            how = functools.partial(self._live.assess, also=self._compared, on_half=self.rule.compares_half)
            assess = functools.partial(how, model, tokenizer, theta)
            measured, broken = assess(f"round {number}: score clients", states)
            for client, measurement in measured.items():
                updates[client].measured = measurement
            for client, fault in broken.items():
                updates[client].fault = fault
            accepted = accepted_updates(number, accepted, self._on_bad_update)
            if self.rule.reads_theta:
                of_global = assess(f"round {number}: score what they began with", {0: theta})[0].get(0, of_global)
        reports = ClientReports.of(accepted, theta, self._run.fed_alg, of_global, own_scores)
        weighting = self.rule.weigh(reports) if accepted else Weighting({}, factors=None, mass=None)
        if updates:
            weighting = pipeline.on_weights(weighting, self.rule, reports, number)
        for client, numbers in weighting.extra.items():
            updates[client].extra |= numbers
        records = {
            client: self._record(update, weighting, None if client in accepted else update.fault)
            for client, update in updates.items()
        }
        for client, payload in payloads.items():
            records[client].payload = payload
        warnings = fault_warnings(updates, accepted, moves=weighting.state is not None)
        shares = self._inputs.shares
        for client, reason in (absent or {}).items():
            rows = self._inputs.rows.get(client, 0)
            records[client] = ClientRecord(shares.get(client), rows, refused=reason, extra={MISSING: 1.0})
            warnings.append(f"client {client} is missing: {reason}")
        rates = {update.learning_rate for update in updates.values()}
        rate = rates.pop() if len(rates) == 1 else None
        averaged = _to_average(weighting, accepted, theta, updates)
        return Weighed(averaged, records, weighting.mass, rate, warnings, weighting.alone, weighting.of_round)

    def _first_measured(self, names: Sequence[str]) -> tuple[str, ...]:
        """The first of the metrics ``names`` that this run can measure of a client.

        Raises:
            UserError: there are some, and none can be.
        """
        suite = self._inputs.suite
        known = {metric.name for metric in suite.metrics if metric.text_count and not metric.of_clients}
        known |= {name for name, (probe, _) in suite.splits.items() if probe}
        found = tuple(name for name in names if name in known)[:1]
        if names and not found:
            ways = [HOW_MEASURED[name] for name in names if name in HOW_MEASURED]
            raise UserError(
                f"--aggregation {self.rule.name} is to compare clients by {' or '.join(names)}, which cannot be "
                f"measured here{': give ' if ways else ''}{', or '.join(ways)}."
            )
        return found

    def _check_own(self) -> None:
        """Refuse a rule that reads of the clients' own test rows what this run does not measure."""
        measured = {metric.name for metric in self._inputs.suite.metrics if metric.text_count}
        missing = sorted(self.rule.reads_own - measured)
        if not missing:
            return
        how = "give --client_test_fraction 0.2"
        if self._arguments.client_test_fraction:
            how = f"the task {self._arguments.task} of this run does not measure it"
        raise UserError(f"--aggregation {self.rule.name} weighs clients by {' and '.join(missing)}: {how}.")

    def _record(self, update: Update, weighting: Weighting, refused: str | None) -> ClientRecord:
        measured = update.measured or Measurement()
        return ClientRecord(
            poisoned_share=self._inputs.shares.get(update.client),
            rows=update.rows,
            train_loss=update.loss,
            update_norm=update.norm,
            metrics=measured.metrics,
            bias_score=measured.bias_score,
            weight=weighting.weights.get(update.client),
            attack=self._arguments.attack if update.client in self._inputs.pipeline.attackers else None,
            refused=refused,
            extra=dict(update.extra),
        )

    def on_result(
        self,
        new: State,
        theta: State,
        number: int,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> tuple[State, dict[str, float]]:
        """The new global state after the stages have seen it, ``new`` itself where none changes it; and what the round
        records of it. Stages take steps with the model where it is given."""
        pipeline = self._inputs.pipeline
        new = pipeline.on_result(new, theta, number)
        if model is None or tokenizer is None or not pipeline.has_steps:
            return new, {}

        def measure(state: State) -> Measurement:
            title = f"round {number}: score a step"
            found, broken = self._live.assess(
                *(model, tokenizer, new, title, {0: state}), also=("heldout_loss",), on_half=True
            )
            if broken:
                raise UserError(f"The global model of round {number} is broken: {broken[0]}.")
            return found[0]

        server = ServerSide(model, tokenizer, self._inputs.suite, measure)
        return pipeline.step(new, theta, number, server)

    def after(self, item_scores: Mapping[str, Any]) -> dict[str, float]:
        """What the rule records of the new global model, from its scores per item, of which it sees the probe items."""
        return self.rule.after(self._inputs.suite.as_assessed(item_scores))

    def state_dict(self) -> dict[str, Any]:
        """What rule and stages must know to go on; JSON-ready."""
        return {"rule": self.rule.state_dict(), "stages": self._inputs.pipeline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self.rule.load_state_dict(state["rule"])
        self._inputs.pipeline.load_state_dict(state["stages"])


def _to_average(
    weighting: Weighting, accepted: Mapping[int, Update], theta: State, received: Mapping[int, Update]
) -> Mapping[int, State]:
    """What the host averages: the very states that came in where its own average is to stand, else one shared state.

    Nothing where all factors are 0. A state that does not need an update (noise alone) goes to all that sent one.
    """
    if weighting.state is not None:
        return dict.fromkeys(accepted or received, weighting.state)
    if weighting.factors is not None and not any(weighting.factors.values()):
        return {}
    states = {client: update.state for client, update in accepted.items()}
    return states if weighting.factors is None else substitute(theta, states, weighting.factors)
