"""BAMA, or any other rule, as a strategy in a Flower app that exists already (docs/flower-strategy.md).

A thin adapter of :class:`fedbias_plugin.BiasSession`. Where the rule weighs clients, every reply gets one and the same
state, the weighted one, before Flower averages (``aggregation/substitution.py``): a weight under a key can say neither
factors that do not sum to 1 (``--bama_weighting paper``) nor rules without weights (``median``).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer, host_factors
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import is_known
from fedbias_plugin.state import State
from fedbias_plugin.tracking.numbers import record_numbers
from fedbias_plugin.tracking.records import RoundRecord
from fedbias_plugin.training.parameters import write_state
from fedbias_plugin.training.plain_states import PlainStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.by_hand import BiasSession

AVERAGE, WEIGHT = "fedbias.average", "fedbias.weight"
"""Private keys of a reply's metrics: by what Flower averages its state, and what the rule weighs it."""
TRAIN_LOSS = "train_loss"
OWN_CHOICE = {"Bulyan", "FedMedian", "FedTrimmedAvg", "FedXgbBagging", "FedXgbCyclic", "MultiKrum", "QFedAvg"}
"""Strategies that choose or weigh clients themselves; Krum is a MultiKrum."""
logger = logging.getLogger(__name__)


class BamaStrategy(FedAvg):
    """Flower's FedAvg with clients weighed by bias; ``class Mine(BamaStrategy, FedAdam)`` makes it another strategy.

    Args:
        session: of :meth:`BiasSession.create`, with ``aggregation``, ``num_clients``, ``num_rounds`` and other flags.
        model: the server's live model, with the adapter if one is trained; states are loaded into it to be scored.
        tokenizer: the model's.
        weigh_metrics: weigh clients' metrics by the rule, too; False keeps the app's ``weighted_by_key`` for them.
        partition_key: where a reply (metrics or config) says which client it is, from 0; else node ids are numbered.

    Raises:
        UserError: the session's flags and the strategy cannot work together.
    """

    weighted_by_key: str
    train_metrics_aggr_fn: Any

    def __init__(
        self,
        *args: Any,
        session: BiasSession,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        weigh_metrics: bool = True,
        partition_key: str = "partition-id",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._session, self._live = session, {"model": model, "tokenizer": tokenizer}
        self._weigh_metrics, self._partition_key = weigh_metrics, partition_key
        self._theta: State = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._numbers: dict[int, int] = {}  # node id -> number, for apps that send no partition id
        self._clients: dict[int, int] = {}  # node id -> client, once it has replied
        self._asked = 0
        _check_fit(type(self), session)

    def start(self, grid: Grid, initial_arrays: ArrayRecord, num_rounds: int = 3, *args: Any, **kwargs: Any) -> Result:
        """Flower's; closes the session."""
        if num_rounds != self._session.run.num_rounds:
            own = self._session.run.num_rounds
            raise UserError(f"start() has num_rounds={num_rounds}, the session num_rounds={own}: give both the same.")
        with self._session:
            return super().start(grid, initial_arrays, num_rounds, *args, **kwargs)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Flower's messages, marked with their round; before the first one the untouched model is measured."""
        self._theta = self._loaded(arrays)
        if server_round == 1:
            self._session.after_aggregation(0, **self._live)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = len(messages)
        for node in sorted({*grid.get_node_ids(), *(message.metadata.dst_node_id for message in messages)}):
            self._numbers.setdefault(node, len(self._numbers))
        for message in messages:
            message.metadata.group_id = str(server_round)
            if "proximal-mu" in config:  # of FedProx; by eq. 6 of BAMA every client has its own
                client = self._clients.get(message.metadata.dst_node_id, -1)
                mu = self._session.proximal_mu(client, config["proximal-mu"])
                own = ConfigRecord({**config, "proximal-mu": mu})
                message.content = RecordDict({**message.content, self.configrecord_key: own})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Flower's, of replies that are scored and weighed; measures the result and records the round.

        Raises:
            UserError: no client has a result, or an update cannot be used and ``on_bad_update`` is ``stop``.
        """
        if not self._asked:  # fraction_train=0
            return super().aggregate_train(server_round, replies)
        good, failed = self._received(server_round, replies)
        weighed = self._weighed(server_round, good)
        with self._keys():
            arrays, metrics = super().aggregate_train(server_round, [*weighed, *failed])
        if arrays is not None:
            self._loaded(arrays)
        record = self._session.after_aggregation(server_round, **self._live)
        private = {AVERAGE, WEIGHT, self.weighted_by_key, self._partition_key}
        kept = {key: value for key, value in (metrics or {}).items() if key not in private}
        return arrays, MetricRecord({**kept, **_numbers(record), "fedbias.failed": len(failed)})

    def _loaded(self, arrays: ArrayRecord) -> State:
        """The state, which the model holds now, in its first dtypes: Flower's FedAdam makes float64 of float32."""
        state = arrays.to_torch_state_dict()
        self._dtypes = self._dtypes or {name: tensor.dtype for name, tensor in state.items()}
        state = {name: tensor.to(self._dtypes.get(name, tensor.dtype)) for name, tensor in state.items()}
        model = self._live["model"]
        write_state(model, PlainStates(model, state, {}).global_state)
        return state

    def _received(self, number: int, replies: Iterable[Message]) -> tuple[dict[int, Message], list[Message]]:
        """One reply a client, by client, and the errors: the same whatever the order in which they came."""
        replies = sorted(replies, key=lambda reply: (reply.metadata.src_node_id, reply.metadata.created_at))
        failed = [reply for reply in replies if reply.has_error()]
        good = [reply for reply in replies if not reply.has_error()]
        if not good:
            why = f"the first of {len(failed)} errors: {failed[0].error.reason}" if failed else "no reply came in time"
            raise UserError(f"Round {number}: none of {self._asked} clients has sent a result ({why}).")
        found: dict[int, Message] = {}
        said = [_said(reply, self._partition_key) for reply in good]
        if None in said and any(one is not None for one in said):
            raise UserError(f"Round {number}: some replies say their {self._partition_key!r}, others do not.")
        for reply, client in zip(good, said, strict=True):
            node, group = reply.metadata.src_node_id, reply.metadata.group_id
            client = self._clients[node] = self._numbers.get(node, -1) if client is None else client
            if group not in ("", str(number)):
                logger.warning("round %d: a reply of client %d to round %s came late: left out", number, client, group)
            elif client in found:
                logger.warning("round %d: client %d has replied twice: node %d is left out", number, client, node)
            else:
                found[client] = reply
        return dict(sorted(found.items())), failed

    def _weighed(self, number: int, replies: Mapping[int, Message]) -> list[Message]:
        """What Flower is to average: the replies that were not refused, with the states that the rule wants."""
        metrics = {client: _only(reply.content.metric_records, client) for client, reply in replies.items()}
        sent = {client: _only(reply.content.array_records, client) for client, reply in replies.items()}
        local_states = {client: arrays.to_torch_state_dict() for client, arrays in sent.items()}
        states = self._session.before_aggregation(
            number,
            **self._live,
            global_state=self._theta,
            local_states=local_states,
            sample_counts={client: int(one.get(self.weighted_by_key, 0)) for client, one in metrics.items()},
            train_losses={client: one[TRAIN_LOSS] for client, one in metrics.items() if TRAIN_LOSS in one},
        )
        rows = {client: metrics[client][self.weighted_by_key] for client in states}
        if len(set(host_factors(self._session.run.fed_alg, rows).values())) == 1:
            rows = dict.fromkeys(rows, 1)
        if any(state is not local_states[client] for client, state in states.items()):
            alone = {min(states): 1} if self._session.averages_one else rows
            mean = ArrayRecord(_mean(self._theta, {client: states[client] for client in alone}, alone))
            sent = {client: ArrayRecord(dict(mean)) for client in states}
            rows = {
                client: int(client == min(states)) for client in states
            }  # 1, 0, 0: Flower's mean is it, bit for bit
        weights = self._session.weights
        return [
            _with(replies[client], sent[client], {AVERAGE: rows[client], WEIGHT: weights.get(client, 1.0)})
            for client in states
        ]

    @contextmanager
    def _keys(self) -> Iterator[None]:
        """Within, Flower averages states by ``AVERAGE``, and metrics by the rule's weights where there are any."""
        key, function = self.weighted_by_key, self.train_metrics_aggr_fn
        by = WEIGHT if self._weigh_metrics and self._session.weights else key
        self.weighted_by_key, self.train_metrics_aggr_fn = AVERAGE, lambda contents, _: function(contents, by)
        try:
            yield
        finally:
            self.weighted_by_key, self.train_metrics_aggr_fn = key, function


def _check_fit(strategy: type, session: BiasSession) -> None:
    """Refuse two rules at once, and a record that would name another algorithm than the one that runs."""
    bases = [base.__name__ for base in strategy.__mro__]
    own, rule, fed_alg = OWN_CHOICE & {*bases}, session.run.config["aggregation"], session.run.fed_alg
    if own and rule != "plain":
        raise UserError(
            f"{min(own)} chooses or weighs clients itself, and so does aggregation={rule!r}: put BamaStrategy over "
            "FedAvg, FedProx, FedAvgM, FedAdagrad, FedAdam or FedYogi, or only measure with aggregation='plain'."
        )
    known = [base.lower() for base in bases if is_known(base.lower())]
    if fed_alg not in known:
        raise UserError(f"BiasSession.create() has fed_alg={fed_alg!r}, the strategy takes {' or '.join(known)}.")


def _said(reply: Message, key: str) -> int | None:
    """The client that a reply says it is of."""
    for record in (*reply.content.metric_records.values(), *reply.content.config_records.values()):
        if isinstance(record.get(key), int | float):
            return int(record[key])
    return None


def _only(records: Mapping[str, Any], client: int) -> Any:
    """The one record of its kind in a client's reply."""
    if len(records) != 1:
        raise UserError(f"The reply of client {client} must have one ArrayRecord and one MetricRecord.")
    return next(iter(records.values()))


def _with(reply: Message, arrays: ArrayRecord, metrics: Mapping[str, float]) -> Message:
    """A copy of the reply with these arrays, and ``metrics`` beside its own."""
    (name,), (own,) = reply.content.array_records, reply.content.metric_records
    found = copy.copy(reply)
    found.content = RecordDict({**reply.content, name: arrays, own: MetricRecord({**reply.content[own], **metrics})})
    return found


def _mean(theta: State, states: Mapping[int, State], rows: Mapping[int, int]) -> State:
    """The mean of the states as the built-in host takes it, bit for bit; what is no floating point stays."""
    *parts, base = (
        {name: one for name, one in s.items() if one.is_floating_point()} for s in [*states.values(), theta]
    )
    mean = ServerOptimizer("fedavg", num_clients=len(states)).aggregate(
        0, base, dict(zip(states, parts, strict=True)), rows
    )
    return {**theta, **mean}


def _numbers(record: RoundRecord) -> dict[str, Any]:
    """What was measured, by name: numbers of the round, and lists in the order of ``fedbias.clients``."""
    rows = [row for row in record_numbers(record) if not row["part"] and row["value"] is not None]
    rows = [row for row in rows if row["client"] < 0 or row["client"] in record.clients]
    of_round = {row["metric"]: row["value"] for row in rows if row["client"] < 0}
    numbers = {name: one for name, one in of_round.items() if not name.startswith(("seconds/", "peak_"))}
    of_clients = {row["metric"]: dict.fromkeys(record.clients, math.nan) for row in rows if row["client"] >= 0}
    for row in rows:
        if row["client"] >= 0:
            of_clients[row["metric"]][row["client"]] = float(row["value"])
    lists = {f"clients.{name}": list(values.values()) for name, values in of_clients.items()}
    return {f"fedbias.{name}": one for name, one in {**numbers, "clients": [*record.clients], **lists}.items()}
