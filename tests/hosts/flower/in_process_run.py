"""Nodes of the Flower host within this process: each has a worker, and none a process; conftest.py runs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedbias_plugin.hosts.flower.wire import Parcel, from_records, to_records
from fedbias_plugin.hosts.flower.worker import Worker
from tests.hosts.flower.in_process_grid import InProcessGrid
from tests.hosts.run_folders import assert_same_run, without_bytes

Change = Callable[[Parcel, Parcel], Parcel]
FIRST = 10
"""Id of the first node."""


@dataclass
class Machines:
    """The nodes of a run, and what goes wrong on them.

    Attributes:
        nodes: how many; a configuration each may be given instead.
        configs: node -> what is added to its ``--node-config``.
        change: what becomes of an answer to a request, on its way; it may raise.
        arrival: as in :class:`InProcessGrid`.
        asked: ``(node, what was asked, client)`` of every message.
    """

    nodes: int = 3
    configs: dict[int, dict[str, Any]] = field(default_factory=dict)
    change: Change = lambda request, answer: answer
    arrival: Callable[[list[Message]], Iterable[Message]] = list
    asked: list[tuple[int, str, int | None]] = field(default_factory=list)

    def grid(self) -> InProcessGrid:
        """A new grid; its workers know nothing of an earlier one's."""
        workers: dict[int, Worker] = {}
        app = ClientApp()

        @app.train()
        @app.query()
        def answer(message: Message, context: Context) -> Message:
            request = from_records(message.content)
            self.asked.append((context.node_id - FIRST, request.meta["ask"], request.meta.get("client")))
            request.meta["node_config"] = dict(context.node_config)
            found = workers.setdefault(context.node_id, Worker()).answer(request)
            return Message(to_records(self.change(request, found)), reply_to=message)

        configs = {
            FIRST + node: {"partition-id": node, "num-partitions": self.nodes, **self.configs.get(node, {})}
            for node in range(self.nodes)
        }
        return InProcessGrid(app, configs, self.arrival)

    def damaged(self, **changes: Any) -> Change:
        """``change`` for the answers of client 1 to ``fit``: other facts."""
        return lambda request, answer: (
            dataclasses.replace(answer, meta=answer.meta | changes) if is_fit(request, 1) else answer
        )


def is_fit(request: Parcel, client: int, rounds: Iterable[int] | None = None) -> bool:
    """Whether a request asks ``client`` to train, in one of ``rounds`` (from 1)."""
    about = request.meta
    return about["ask"] == "fit" and about["client"] == client and (rounds is None or about["round_idx"] + 1 in rounds)


def run_config(words: list[str]) -> dict[str, str]:
    """Flags of a command line as Flower's run configuration has them."""
    config, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            config[name] = "true"
        else:
            config[name] = word
    return config


def assert_same_results(one: Path, other: Path) -> None:
    """The same run, but for the bytes that only a wire has."""
    assert_same_run(one, other, without_bytes)
