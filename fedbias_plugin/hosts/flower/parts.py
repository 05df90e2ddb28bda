"""What nodes are sent of the model itself, where clients train in one that the server makes: only what they lack.

A request names the states that its node must hold beside theta, and their versions. Those that the node is not known to
hold travel with it; a node that has not got one, as it was started anew, says so, and is sent them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedbias_plugin.hosts.flower.wire import Packed, Parcel, packed
from fedbias_plugin.state import State
from fedbias_plugin.training.base import Trainable

PARTS = "parts"
"""In a request's facts: name -> version; the state itself, where it travels, is labelled ``part NAME``."""
LACKS = "lacks"
"""In an answer: the names of states that the node has not got."""


class SentParts:
    """The server's side, for the length of a run.

    Args:
        trainable: whose :attr:`Trainable.parts` they are.
    """

    def __init__(self, trainable: Trainable) -> None:
        self._trainable = trainable
        self._sent: dict[int, tuple[int, int]] = {}
        self._held: dict[int, dict[str, int]] = {}
        self._packed: dict[str, Packed] = {}

    def joined(self, client: int, request: Parcel, node: int) -> Parcel:
        """The ``request`` as ``node`` is to get it for ``client``; afterwards it holds what it must."""
        wanted, held = self._trainable.parts, self._held.get(node, {})
        if wanted:
            states = {f"part {name}": self._as_bytes(name) for name in wanted if held.get(name) != wanted[name]}
            request = Parcel({**request.meta, PARTS: wanted}, {**request.states, **states})
            self._held[node] = wanted
        payload, wire = self._sent.get(client, (0, 0))
        self._sent[client] = payload + request.payload, wire + request.wire
        return request

    def forget(self, nodes: Iterable[int]) -> None:
        """They have nothing."""
        for node in nodes:
            self._held.pop(node, None)

    def end_round(self) -> dict[int, tuple[int, int]]:
        """Client id -> bytes of tensors, and with headers, of its requests of the round; who holds what stays known."""
        self._packed.clear()
        sent, self._sent = self._sent, {}
        return sent

    def _as_bytes(self, name: str) -> Packed:
        if name not in self._packed:
            self._packed[name] = packed(self._trainable.part(name))
        return self._packed[name]


class HeldParts:
    """A node's side.

    Args:
        trainable: takes them.
        model: the one that the node's clients train in.
    """

    def __init__(self, trainable: Trainable, model: object) -> None:
        self._trainable, self._model = trainable, model
        self._held: dict[str, int] = {}

    def take(self, wanted: Mapping[str, int], states: Mapping[str, State]) -> list[str]:
        """Put ``states`` (name -> state) into the model; the names that are ``wanted`` and missing in this version."""
        self._trainable.take(self._model, states)
        self._held |= {name: wanted[name] for name in states}
        return sorted(name for name, version in wanted.items() if self._held.get(name) != version)
