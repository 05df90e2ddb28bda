"""The rounds of a run whose clients train on the nodes of a Flower federation: all else is the built-in host's."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.partition import ClientDataset, rows_hash
from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.federation.checkpoints import Checkpoint
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.federation import Federation
from fedbias_plugin.hosts.flower.arguments import FlowerArguments
from fedbias_plugin.hosts.flower.fleet import Fleet, NodeFacts
from fedbias_plugin.hosts.flower.parts import SentParts
from fedbias_plugin.hosts.flower.wire import LEDGER, Packed, Parcel, packed, unpacked
from fedbias_plugin.hosts.flower.worker import asked
from fedbias_plugin.metrics.results import package_versions
from fedbias_plugin.registry import load
from fedbias_plugin.state import State
from fedbias_plugin.training.base import ClientRound
from fedbias_plugin.training.fingerprint import outline_fingerprint
from fedbias_plugin.updates.base import Update

logger = logging.getLogger(__name__)


class RemoteFederation(Federation):
    """A :class:`Federation` that asks ``fleet`` to train; what is measured is measured here, in its one live model.

    Args:
        fleet: the nodes.
        arguments: how long to wait for them.
        rest: as :class:`Federation`.

    Raises:
        UserError: a node has another model, tokenizer or other rows than the run.
    """

    def __init__(self, *rest: Any, fleet: Fleet, arguments: FlowerArguments) -> None:
        super().__init__(*rest)
        if self.bias.local_baseline:
            raise UserError("--local_baseline trains every client here, and Flower's train on their nodes: drop it.")
        self.fleet, self.arguments = fleet, arguments
        extensions = {"task": self.client.task, "trainable": None if self.trainable.sends_model else self.trainable}
        keeping = [name for name, part in extensions.items() if part is not None and part.state_dict()]
        if keeping:
            raise UserError(f"The {keeping[0]} of this run remembers something between rounds, which no node can.")
        self.parts = SentParts(self.trainable)
        fleet.check, fleet.check_stop = self._check_node, self.stop.check
        for facts in fleet.facts():
            self._check_node(facts)

    def datasets_to_encode(self) -> Sequence[ClientDataset]:
        """None: every node checks and encodes the rows of its clients."""
        return ()

    def run(self, resumed: Checkpoint | None) -> None:
        """As the built-in host; the nodes are told when it is over, unless it was stopped, which ends Flower's run."""
        try:
            super().run(resumed)
        except Stopped:
            raise
        except BaseException:
            self.fleet.end()
            raise
        self.fleet.end()

    @functools.cached_property
    def _of_nodes(self) -> str:
        """What every node must say of its model."""
        if self.trainable.sends_model:
            return outline_fingerprint(self.client.model, self.tokenizer)
        return self._fingerprint

    def _check_node(self, facts: NodeFacts) -> None:
        named = f"The node of client(s) {', '.join(map(str, facts.clients))}"
        if facts.model != self._of_nodes:
            raise UserError(
                f"{named} has another base model or tokenizer than the server: give both the same "
                "--model_name_or_path, or the node its own place of it (--node-config 'model_name_or_path=...')."
            )
        hashes = {dataset.client: rows_hash(dataset.rows) for dataset in self.session.client_datasets}
        if facts.clients.keys() - hashes.keys():
            raise UserError(f"{named} holds clients that the run with --num_clients {len(hashes)} does not have.")
        other = [client for client, about in facts.clients.items() if about.get("sha256") != hashes[client]]
        if other:
            raise UserError(
                f"{named} deals other rows to client {other[0]} than the server: their data sets differ. A node with "
                "rows of its own says so: --node-config 'clean_dataset=...'."
            )
        here = package_versions()
        for package in sorted(here.keys() & facts.versions.keys()):
            if here[package] != facts.versions[package]:
                versions = (facts.versions[package], here[package])
                logger.warning("%s has %s %s, the server %s: bits may differ.", named, package, *versions)

    def _trained(self, round_idx: int, clients: Sequence[int]) -> tuple[dict[int, Update], Mapping[int, State]]:
        number, needed = round_idx + 1, min(self.arguments.min_clients, len(clients))
        self._gather(clients, needed)
        jobs = {client: self._job(client, round_idx) for client in clients}
        theta = packed(self.global_state)
        requests = {client: self._request(job, theta, len(clients)) for client, job in jobs.items()}
        answers, absent = self.fleet.train(number, requests, self.parts)
        down = self.parts.end_round()
        del requests, theta
        updates = {}
        for client, answer in answers.items():
            try:
                updates[client] = self._update(jobs[client], answer)
            except UserError as error:
                absent[client] = str(error)
                continue
            sizes = *down[client], answer.payload, answer.wire
            updates[client].extra |= dict(zip(LEDGER, map(float, sizes), strict=True))
            self._check_loss(updates[client], jobs[client])
        answers.clear()
        if len(updates) < needed:
            reasons = "; ".join(f"client {client}: {reason}" for client, reason in absent.items())
            raise UserError(
                f"Round {number}: {len(updates)} of {len(clients)} clients answered, and --min_clients asks for "
                f"{needed} ({reasons}). Mend that and go on with --resume."
            )
        received = number, dict(updates), self.global_state
        probe = self.trainable.probe_model(self.model)
        states = self.session.receive(*received, model=probe, tokenizer=self.tokenizer, are_sent=True, absent=absent)
        return updates, states

    def _gather(self, clients: Sequence[int], needed: int) -> None:
        """Go on with the nodes that are there; wait where fewer than are ``needed``."""
        self.fleet.refresh()
        if len(self.fleet.where().keys() & set(clients)) < needed:
            self.fleet.gather(clients, needed, enough=needed)

    def _request(self, job: ClientRound, theta: Packed, clients: int) -> Parcel:
        about = {"client": job.client, "round_idx": job.round_idx, "mu": job.mu, "clients": clients}
        states = {"theta": theta}
        broadcast = {name: state for name, state in job.broadcast.items() if name not in self.trainable.parts}
        for kind, named in (("kept", job.kept), ("broadcast", broadcast)):
            states |= {f"{kind} {name}": packed(state) for name, state in named.items()}
        return Parcel(asked("fit", self.fleet.flags, **about), states)

    def _update(self, job: ClientRound, answer: Parcel) -> Update:
        """The update in an answer, as if it had been trained here.

        Raises:
            UserError: it is not what a client of this run answers in this round.
        """
        about, held = answer.meta, len(self.session.client_datasets[job.client].rows)
        check_facts(about, client=job.client, round_idx=job.round_idx, rows=held)
        terms = self.client.terms
        labels = {"state", *(f"sent {name}" for term in terms for name in term.sends)}
        labels |= {f"keeps {name}" for name in (*self.session.kept_by_stages, *(n for t in terms for n in t.keeps))}
        if answer.states.keys() != labels:  # the server makes files of these names
            raise UserError(f"it sent the states {sorted(answer.states)}, not {sorted(labels)}")
        states = {label: unpacked(state) for label, state in answer.states.items()}
        job.rows, job.learning_rate, job.extra = held, about["learning_rate"], about["extra"]
        state = states.pop("state")
        for label, part in states.items():
            kind, _, name = label.partition(" ")
            (job.sent if kind == "sent" else job.keeps)[name] = part
        update = self.client.update(job, state, about["steps"], about["loss"])
        update.payload = about.get("payload")
        return update


def check_can_be_sent(host: HostArguments, bias: BiasArguments) -> None:
    """Refuse a quantised model where clients are sent the one that they train in.

    Raises:
        UserError: naming the flag.
    """
    quantised = [name for name in ("load_in_8bit", "load_in_4bit") if getattr(host, name)]
    if quantised and bias.trainable and load("trainable", bias.trainable).sends_model:
        raise UserError(
            f"--{quantised[0]}: with --trainable {bias.trainable} the server sends nodes the weights that they may "
            "hold, which it cannot of a quantised model; drop it, or use fedbias run."
        )


def check_facts(about: Mapping[str, Any], **expected: int) -> None:
    """Refuse an answer whose facts are not those of a client of this run.

    Raises:
        UserError: as a phrase; a fact is missing, of another kind, or not what is ``expected``.
    """
    for name, value in expected.items():
        if about.get(name) != value:
            raise UserError(f"it answered with {name} {about.get(name)!r}, not {value}")
    numbers = {"learning_rate": about.get("learning_rate"), **_numbers(about.get("extra"))}
    if about.get("loss") is not None:
        numbers["loss"] = about["loss"]
    for name, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (name != "loss" and not math.isfinite(value)):  # a loss has a check of its own
            raise UserError(f"it answered with {name} {str(value)[:80]!r}, which is no number")
    counts: dict[str, Any] = {"steps": about.get("steps")}
    if about.get("payload") is not None:
        payload = about["payload"]
        counts |= payload if isinstance(payload, dict) else {"payload": payload}
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UserError(f"it answered with {name} {str(value)[:80]!r}, which is no count")


def _numbers(extra: Any) -> dict[str, Any]:
    return extra if isinstance(extra, dict) else {"extra": extra}
