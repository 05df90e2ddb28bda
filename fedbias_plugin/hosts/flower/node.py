"""What a node does: holds its clients' rows and the model, and trains one client when it is asked.

The very :class:`Client`, stages and rows of the built-in host, so that the same flags give the same bytes. A node keeps
nothing between rounds that the run would miss: what a client keeps (SCAFFOLD's control variate) travels with its update
and comes back with its next round, so that a node may die and another may take its clients over. Of a model that the
server makes for clients it says what it lacks (:mod:`fedbias_plugin.hosts.flower.parts`), and reads no checkpoint.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset, Partition, rows_hash
from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.federation.inputs import dealt_rows, metric_source
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.flags import build
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.model_and_rows import load_checked, unread_checked
from fedbias_plugin.hosts.flower.parts import LACKS, PARTS, HeldParts
from fedbias_plugin.hosts.flower.wire import Parcel, packed, unpacked
from fedbias_plugin.metrics.results import package_versions
from fedbias_plugin.preflight import check_model, model_path
from fedbias_plugin.registry import active
from fedbias_plugin.registry import build as extension
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.training.base import Trainable
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.determinism import make_deterministic
from fedbias_plugin.training.fingerprint import model_fingerprint, outline_fingerprint
from fedbias_plugin.training.isolation import frozen_heap
from fedbias_plugin.training.models import load_tokenizer
from fedbias_plugin.updates.pipeline import Pipeline

OWN_ROWS = ("clean_dataset", "biased_dataset", "preference_dataset", "columns")
OF_NODE = (*OWN_ROWS, "data_dir", "model_name_or_path")
"""The flags that ``--node-config`` may give otherwise than the run: where this machine has things."""
ABOUT_NODE = ("partition-id", "num-partitions")


class Node:
    """The clients of one node, for the length of a run.

    Args:
        flags: every flag of the run, resolved.
        config: of the node (``--node-config``): ``partition-id``, ``num-partitions`` and flags of :data:`OF_NODE`.

    Attributes:
        clients: ids of the clients it holds: those that leave ``partition-id`` when divided by ``num-partitions``.

    Raises:
        UserError: anything that the built-in host would refuse before training, or an unknown name in ``config``.
    """

    def __init__(self, flags: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        layers = [("the run", flags), ("--node-config", own_flags(config))]
        self.host, self.bias = build(HostArguments, layers), build(BiasArguments, layers)
        self.clients = clients_of(config, self.host.num_clients)
        self._has_own_rows = any(name in config for name in OWN_ROWS)
        if self.bias.deterministic:
            make_deterministic()
        name = self.bias.trainable or ("lora" if self.host.use_peft else "full")
        trainable: Trainable = extension("trainable", name, self.host, self.bias)
        check_model(self.host.model_name_or_path, weights=not trainable.sends_model)
        task: Task = extension("task", self.bias.task, self.host, self.bias)
        path = model_path(self.host.model_name_or_path)
        self.tokenizer = load_tokenizer(path, trust_remote_code=self.host.trust_remote_code)
        task.prepare(self.tokenizer)
        self.run = HostRun(Path(self.host.output_dir), prompt=task.prompt, **self.host.of_the_loop)
        partition, self.pipeline = self._rows()
        if self._has_own_rows and task.reads_all_rows:
            raise UserError(f"--task {task.name} must see the labels of all rows; no node may bring its own.")
        task.read(partition)
        self._files = {source.name: source.sha256 for source in partition.sources.values()}
        self.datasets = {dataset.client: dataset for dataset in partition.clients if dataset.client in self.clients}
        loaded = unread_checked if trainable.sends_model else load_checked
        datasets = list(self.datasets.values())
        self.model, self.features = loaded(self.host, task, trainable, self.tokenizer, datasets)
        self._fingerprint = outline_fingerprint if trainable.sends_model else model_fingerprint
        self._parts = HeldParts(trainable, self.model)
        self.client = Client(
            self.model,
            [*terms_of(self.host.fed_alg, self.host, self.bias), *trainable.terms],
            trainable=trainable,
            task=task,
            settings=TrainingSettings.of(vars(self.host) | vars(self.bias)),
            pad_token_id=self.tokenizer.pad_token_id,
            units={client: dataset.units for client, dataset in self.datasets.items()},
        )

    def _rows(self) -> tuple[Partition, Pipeline]:
        """Every client's rows after the transforms; on a node with rows of its own, its own clients' alone."""
        split, seed, own = self.bias.split, self.host.seed, self.clients
        everybody = split.shares(self.host.num_clients, seed) if split else None
        if self._has_own_rows and everybody is None:
            raise UserError(f"--scenario {self.bias.scenario} deals the rows of one file; no node may bring its own.")
        if self._has_own_rows and everybody is not None:
            shares = ",".join(str(everybody[client]) for client in own)
            roles = {"scenario": "custom", "biased_shares": shares}
            alone = build(BiasArguments, [("this node", vars(self.bias) | roles)])
            partition = dealt_rows(alone, len(own), seed)
            clients = [
                dataclasses.replace(dataset, client=client)
                for client, dataset in zip(own, partition.clients, strict=True)
            ]
            partition = dataclasses.replace(partition, clients=clients)
            known = dict(enumerate(everybody))
        else:
            partition = dealt_rows(self.bias, self.host.num_clients, seed)
            known = partition.known_shares
        pipeline = Pipeline(self.bias, self.run, known)
        benchmarks = {}
        if pipeline.reads_benchmarks:  # an attacker knows the probe; nobody else does
            benchmarks = {metric.name: metric for metric in active("metric", self.bias) if metric.of_clients}
            for metric in benchmarks.values():
                metric.prepare(metric_source(self.bias.data_dir))
        changed, _ = pipeline.on_data(partition, benchmarks)
        assert changed is not None, "no transform takes the rows away"
        return changed, pipeline

    def describe(self) -> Parcel:
        """Which clients it holds, what their rows are (no text of them), which model, which versions."""
        files = self._files if self._has_own_rows else {}
        return Parcel(
            {
                "clients": {str(client): described(dataset, files) for client, dataset in self.datasets.items()},
                "own_rows": self._has_own_rows,
                "model": self._fingerprint(self.model, self.tokenizer),
                "versions": package_versions(),
            }
        )

    def fit(self, request: Parcel) -> Parcel:
        """Train one client for a round, and pass its update through the client half of every stage.

        The request's states are taken out of it. Where the node lacks what it must have been sent of the model, the
        answer says that in its place.
        """
        with frozen_heap():  # of the objects that exist before, none can become garbage here
            answer = self._fitted(request)
            gc.collect()
        return answer

    def _fitted(self, request: Parcel) -> Parcel:
        about = request.meta
        states = {label: unpacked(request.states.pop(label)) for label in list(request.states)}
        theta = states.pop("theta")
        parts: dict[str, dict[str, Any]] = {"kept": {}, "broadcast": {}, "part": {}}
        for label in list(states):
            kind, _, name = label.partition(" ")
            parts[kind][name] = states.pop(label)
        lacking = self._parts.take(about.get(PARTS, {}), parts.pop("part"))  # let go of, as they are in the model now
        if lacking:
            return Parcel({LACKS: lacking})
        client = int(about["client"])
        self.client.kept = {client: parts["kept"]}
        job = self.client.begin(client, about["round_idx"], theta, mu=about["mu"], broadcast=parts["broadcast"])
        update = self.client.fit(job, self.features[client])
        update = self.pipeline.at_client(update, theta, job.round_idx + 1, about["clients"])
        facts = {name: getattr(update, name) for name in ("client", "rows", "loss", "steps", "extra")}
        facts |= {} if update.payload is None else {"payload": update.payload}
        facts |= {"round_idx": job.round_idx, "learning_rate": job.learning_rate}
        answer = Parcel(facts, {"state": packed(update.state)})
        for kind, named in (("sent", update.sent), ("keeps", update.keeps)):
            answer.states |= {f"{kind} {name}": packed(state) for name, state in named.items()}
        self.client.kept = {}
        return answer


def own_flags(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flags in a node's configuration.

    Raises:
        UserError: a name that is none of them.
    """
    for name in config:
        if name not in (*ABOUT_NODE, *OF_NODE):
            known = (*ABOUT_NODE, *OF_NODE)
            raise UserError(f"--node-config: {name!r} is no name; use {', '.join(known)}.{did_you_mean(name, known)}")
    return {name: config[name] for name in OF_NODE if name in config}


def clients_of(config: Mapping[str, Any], num_clients: int) -> list[int]:
    """The ids of the clients on a node.

    >>> clients_of({"partition-id": 1, "num-partitions": 2}, 5)
    [1, 3]

    Raises:
        UserError: the two numbers are missing, or make no sense.
    """
    try:
        index, count = (int(config[name]) for name in ABOUT_NODE)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            "A SuperNode needs --node-config 'partition-id=I num-partitions=N', two whole numbers."
        ) from None
    clients = list(range(index, num_clients, count)) if 0 <= index < count else []
    if not clients:
        raise UserError(
            f"--node-config 'partition-id={index} num-partitions={count}' leaves this node without a client: the run "
            f"has --num_clients {num_clients}."
        )
    return clients


def described(dataset: ClientDataset, files: Mapping[str, str]) -> dict[str, Any]:
    """A client's rows without their text: the share asked for, the hash of their ids; id, source, kind and unit each.

    ``files``: source -> sha256, of a node with rows of its own: the ids then hold it, as a file that nobody else has is
    not known by its name.
    """
    held = [
        dataclasses.replace(row, id=f"{row.id}@{files[row.source][:16]}") if row.source in files else row
        for row in dataset.rows
    ]
    rows = [[row.id, row.source, row.biased, unit] for row, unit in zip(held, dataset.units, strict=True)]
    return {"biased_share": dataset.biased_share, "sha256": rows_hash(held), "rows": rows}
