"""Flower's Grid within this process: nodes are ClientApps that are called one after the other."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RAISED, SERVER = 2, 1
"""Flower's code of an error that a ClientApp raised, and its id of the server."""


class InProcessGrid(Grid):
    """Nodes with an app each; what it raises comes back as an error, as from a SuperNode.

    Args:
        app: the ClientApp of every node.
        nodes: node id -> its ``node_config``.
        arrival: what is made of the replies before they arrive, such as another order; as they are without it.
    """

    def __init__(
        self,
        app: ClientApp,
        nodes: Mapping[int, dict[str, int]],
        arrival: Callable[[list[Message]], Iterable[Message]] = list,
    ) -> None:
        self.app, self.arrival = app, arrival
        self.contexts = {node: Context(1, node, config, RecordDict(), {}) for node, config in nodes.items()}
        self._replies: dict[str, Message] = {}
        self._ids = (f"message-{number}" for number in itertools.count())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, SERVER

    def set_run(self, run: Run) -> None:
        """Nothing: there is one run."""

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._answer(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return list(self.arrival([self._replies.pop(one) for one in message_ids if one in self._replies]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> str:
        message.metadata.__dict__["_message_id"] = name = next(self._ids)
        try:
            self._replies[name] = self.app(copy.deepcopy(message), self.contexts[message.metadata.dst_node_id])
        except Exception as error:
            self._replies[name] = Message(Error(RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
        return name
