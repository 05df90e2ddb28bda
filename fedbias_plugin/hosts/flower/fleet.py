"""The nodes of a federation as the server sees them: who holds which client, who is there, who has answered."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message, MessageType

from fedbias_plugin import __version__
from fedbias_plugin.data.partition import ClientDataset
from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.flower.arguments import FlowerArguments
from fedbias_plugin.hosts.flower.parts import LACKS, SentParts
from fedbias_plugin.hosts.flower.wire import Parcel, from_records, to_records
from fedbias_plugin.hosts.flower.worker import HELD, USER_ERROR, asked

if TYPE_CHECKING:
    from flwr.serverapp import Grid

logger = logging.getLogger(__name__)

POLL = 0.5
"""Seconds between two looks at what has arrived."""
TURN = 300.0
"""Seconds after which the next large update is collected although the one before has not arrived: it may hang."""
ATTEMPTS = 2
"""How often a client is asked in a round, where its node fails over the first."""
LONGEST_REASON = 300
"""Characters of what a node says of its failure that the records keep."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node said of itself; the attributes are those of :meth:`Node.describe`."""

    clients: dict[int, dict[str, Any]]
    own_rows: bool
    model: str
    versions: dict[str, str]


class Fleet:
    """Sends requests to nodes and collects what they answer.

    Args:
        grid: Flower's.
        flags: every flag of the run, resolved; nodes build clients from them.
        arguments: how long to wait.

    Attributes:
        flags: as given.
        check: called with what a new node says of itself; raises UserError where it does not fit the run. Once it is
            set, a node that does not fit is left out, as one that came too late must not end a run.
        check_stop: called while the server waits; raises to stop.
    """

    def __init__(self, grid: Grid, flags: Mapping[str, Any], arguments: FlowerArguments) -> None:
        self._grid, self.flags, self._arguments = grid, flags, arguments
        self.check_stop: Callable[[], None] = lambda: None
        self.check: Callable[[NodeFacts], None] | None = None
        self._known: dict[int, NodeFacts] = {}
        self._left_out: set[int] = set()
        self._alive: set[int] = set()

    def facts(self) -> list[NodeFacts]:
        """What the nodes that are there now said of themselves."""
        return [self._known[node] for node in sorted(self._alive)]

    def where(self) -> dict[int, int]:
        """Client id -> node that holds it, of nodes that are there; of two nodes the one that came last."""
        return {client: node for node in self._known if node in self._alive for client in self._known[node].clients}

    def gather(self, wanted: Collection[int], at_least: int, enough: int | None = None) -> None:
        """Wait until ``enough`` (all) of the ``wanted`` clients are there, or the time is over and ``at_least`` are.

        Raises:
            UserError: the time is over and fewer are there; or a node cannot take part, and says why.
        """
        limit = time.monotonic() + self._arguments.node_wait
        is_told = False
        while True:
            self.refresh()
            there = self.where().keys() & set(wanted)
            if len(there) >= (len(set(wanted)) if enough is None else enough):
                return
            if time.monotonic() > limit:
                break
            if not is_told:
                missing = ", ".join(map(str, sorted(set(wanted) - there)))
                logger.info("waiting for client(s) %s, at most %g seconds", missing, self._arguments.node_wait)
                is_told = True
            self.check_stop()
            time.sleep(1)
        if len(there) < at_least:
            raise UserError(
                f"{len(there)} of the clients {', '.join(map(str, sorted(wanted)))} came within --node_wait "
                f"{self._arguments.node_wait:g} seconds, and --min_clients asks for {at_least}. Start their SuperNodes "
                "and go on with --resume."
            )

    def refresh(self) -> None:
        """Ask nodes that are new who they are, and forget those that have gone.

        Raises:
            UserError: a node cannot take part, and says why, before the run has begun.
        """
        there = set(self._grid.get_node_ids())
        self._left_out &= there  # one with a key comes back under its number, and may have changed
        self._known = {node: facts for node, facts in self._known.items() if node in there}
        self._alive = there - self._left_out
        new = [node for node in self._alive if node not in self._known]
        if not new:
            return
        request = Parcel(asked("describe", self.flags))
        wait = self._arguments.node_wait
        limit, late = time.monotonic() + wait, f"no answer within --node_wait {wait:g}"
        answers, failed = self._exchange(
            {node: (node, request) for node in new}, MessageType.QUERY, "hello", limit, late
        )
        for node in new:
            try:
                if node in failed:
                    raise failed[node]
                self._known[node] = self._facts_of(answers[node])
            except _Failed as error:
                logger.warning("node %s did not say who it is: %s", node, error)
                self._alive.discard(node)
            except UserError as error:
                if self.check is None:
                    raise
                logger.warning("node %s is left out: %s", node, error)
                self._left_out.add(node)
                self._alive.discard(node)

    def _facts_of(self, answer: Parcel) -> NodeFacts:
        about = answer.meta
        try:
            clients = {
                int(client): {**facts, "rows": list(facts["rows"])} for client, facts in about["clients"].items()
            }
            facts = NodeFacts(clients, bool(about["own_rows"]), str(about["model"]), dict(about["versions"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _Failed(f"its description is not one of fedbias_plugin {__version__} ({error!r})") from error
        if self.check is not None:
            self.check(facts)
        return facts

    def train(
        self, number: int, requests: Mapping[int, Parcel], parts: SentParts
    ) -> tuple[dict[int, Parcel], dict[int, str]]:
        """Send every client its request of round ``number``, with the ``parts`` that its node lacks; await the answers.

        Returns:
            client id -> answer; client id -> why there is none.
        """
        answers: dict[int, Parcel] = {}
        absent: dict[int, str] = {}
        final: set[int] = set()  # their nodes refuse; asking again would not help
        limit = time.monotonic() + self._arguments.round_timeout
        for attempt in range(1, ATTEMPTS + 1):
            if attempt > 1:
                self.refresh()
            where = self.where()
            todo = {c: where[c] for c in requests if c in where and c not in answers and c not in final}
            absent = {c: absent.get(c, "its node is not there") for c in requests if c not in answers}
            arrived, failed = self._ask(number, todo, requests, parts, limit)
            answers |= arrived
            absent = {c: str(failed.get(c, reason)) for c, reason in absent.items() if c not in arrived}
            final |= {client for client, error in failed.items() if isinstance(error, UserError)}
            again = failed.keys() - final
            if not again or attempt == ATTEMPTS or time.monotonic() > limit:
                break
            named = "; ".join(f"client {client}: {failed[client]}" for client in sorted(again))
            logger.warning("round %d: %s; asked once more", number, named)
        return {client: answers[client] for client in requests if client in answers}, absent

    def _ask(
        self, number: int, todo: Mapping[int, int], requests: Mapping[int, Parcel], parts: SentParts, limit: float
    ) -> tuple[dict[int, Parcel], dict[int, Exception]]:
        """As :meth:`_exchange`; ``todo``: client id -> node. A node that says what it lacks is sent it."""
        late = f"no answer within --round_timeout {self._arguments.round_timeout:g}"
        arrived: dict[int, Parcel] = {}
        failed: dict[int, Exception] = {}
        for _ in range(2):
            joined = {client: (node, parts.joined(client, requests[client], node)) for client, node in todo.items()}
            found, without = self._exchange(joined, MessageType.TRAIN, str(number), limit, late)
            todo = {client: todo[client] for client, answer in found.items() if LACKS in answer.meta}
            arrived |= {client: answer for client, answer in found.items() if client not in todo}
            failed |= without
            if not todo:
                break
            parts.forget(todo.values())
        return arrived, failed | dict.fromkeys(todo, _Failed("its node lost what it was sent of the model"))

    def end(self) -> None:
        """Tell every node that the run is over; nobody is waited for long."""
        self._alive &= set(self._grid.get_node_ids())
        request = Parcel(asked("end", {}))
        limit = time.monotonic() + 10
        self._exchange({node: (node, request) for node in self._alive}, MessageType.QUERY, "end", limit, "no answer")

    def _exchange(
        self, todo: Mapping[int, tuple[int, Parcel]], kind: str, group: str, limit: float, late: str
    ) -> tuple[dict[int, Parcel], dict[int, Exception]]:
        """Key -> answer; key -> why there is none (``late`` after ``limit``). ``todo``: key -> (node, request).

        Large updates wait at their nodes and are collected one after the other: a SuperLink keeps in memory what
        travels, and would hold a round's at once.
        """
        answers: dict[int, Parcel] = {}
        waiting, failed = self._push(todo, kind, group, limit)
        held: list[int] = []
        collected: list[int] = []
        turn_ends = 0.0
        while waiting or held:
            for reply in self._grid.pull_messages(list(waiting)):
                key = waiting.pop(reply.metadata.reply_to_message_id, None)
                if key is None:  # a second answer to the same request
                    continue
                try:
                    answer = _opened(reply)
                except (_Failed, UserError) as error:
                    failed[key] = error
                    continue
                if kind == MessageType.TRAIN and HELD in answer.meta and key not in collected:
                    held.append(key)
                else:
                    answers[key] = answer
            if not (waiting or held) or time.monotonic() > limit:
                break
            if held and (time.monotonic() > turn_ends or not set(collected) & set(waiting.values())):
                key, turn_ends = held.pop(0), time.monotonic() + TURN
                collected.append(key)
                request = {key: (todo[key][0], Parcel(asked("collect", {}, client=key)))}
                sent, unsent = self._push(request, MessageType.QUERY, group, limit)
                waiting, failed = waiting | sent, failed | unsent
                continue
            self.check_stop()
            time.sleep(POLL)
        failed |= dict.fromkeys([*waiting.values(), *held], _Failed(late))
        return answers, failed

    def _push(
        self, todo: Mapping[int, tuple[int, Parcel]], kind: str, group: str, limit: float
    ) -> tuple[dict[str, int], dict[int, Exception]]:
        """Send every request; id of its message -> key, and key -> why it could not be sent."""
        ttl = max(1.0, limit - time.monotonic()) + 60
        messages = [
            Message(to_records(parcel), dst_node_id=node, message_type=kind, group_id=group, ttl=ttl)
            for node, parcel in todo.values()
        ]
        pairs = list(zip(self._grid.push_messages(messages), todo, strict=True)) if messages else []
        unsent = [key for message_id, key in pairs if not message_id]
        sent = {message_id: key for message_id, key in pairs if message_id}
        return sent, dict.fromkeys(unsent, _Failed("its message could not be sent"))


class _Failed(Exception):
    """A node did not answer as it should; asking again may help."""


def _opened(reply: Message) -> Parcel:
    """The parcel in a reply.

    Raises:
        _Failed: Flower gives an error in its place, it is damaged, or the node failed.
        UserError: the node refuses, and says why.
    """
    if reply.has_error():
        reason = " ".join(str(reply.error.reason).split())[:LONGEST_REASON]
        raise _Failed(f"Flower reports error {reply.error.code}: {reason}")
    try:
        parcel = from_records(reply.content)
    except UserError as error:
        raise _Failed(str(error)) from error
    if "error" in parcel.meta:
        reason = " ".join(str(parcel.meta["error"]).split())[:LONGEST_REASON]
        if parcel.meta.get("kind") == USER_ERROR:
            raise UserError(f"node {reply.metadata.src_node_id} refuses: {reason}")
        raise _Failed(f"its node failed: {reason}")
    return parcel


def own_datasets(facts: Collection[NodeFacts]) -> dict[int, ClientDataset]:
    """Client id -> its rows without their text, of the nodes that brought their own."""
    return {
        client: ClientDataset(
            client,
            tuple(Row(id, "", "", biased, source, unit=str(n)) for id, source, biased, n in about["rows"]),
            about["biased_share"],
        )
        for node in facts
        if node.own_rows
        for client, about in node.clients.items()
    }
