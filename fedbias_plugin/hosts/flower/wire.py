"""What goes over the wire: a few facts as JSON, and states as the raw bytes of their tensors, with one hash of it all.

A :class:`Parcel` travels between ServerApp and ClientApp as a Flower ``RecordDict``, and between ClientApp and worker
through a socket. Neither form knows floats: every dtype of a state, bfloat16 too, arrives bit for bit. Importing this
module imports neither torch nor Flower, since a ClientApp is a new process for every message.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from fedbias_plugin.errors import UserError

if TYPE_CHECKING:
    import torch
    from flwr.app import RecordDict

    from fedbias_plugin.state import State

META, STATE = "fedbias", "state "
STYPE = "fedbias.raw"
LARGEST_HEADER = 64 * 2**20
LEDGER = ("bytes_down", "wire_down", "bytes_up", "wire_up")
"""What a client's record says of its round: bytes of tensors, and with the header, to it and from it."""


class Entry(NamedTuple):
    """A tensor's name, the name of its torch dtype, its shape, and how many bytes it has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Packed(NamedTuple):
    """A state as bytes: its tensors one after the other, each in C order and little-endian.

    One block, as Flower makes some six requests of every array that travels.
    """

    entries: tuple[Entry, ...]
    data: bytes


@dataclass
class Parcel:
    """One request or one answer.

    Attributes:
        meta: JSON-ready facts.
        states: label (``theta``, ``kept control``) -> state.
    """

    meta: dict[str, Any]
    states: dict[str, Packed] = field(default_factory=dict)

    @property
    def payload(self) -> int:
        """Bytes of all tensors."""
        return sum(len(state.data) for state in self.states.values())

    @property
    def wire(self) -> int:
        """Bytes of tensors and header; Flower, HTTP and TLS add their own."""
        return self.payload + len(self._described("0" * 64))

    def header(self) -> str:
        """Everything but the tensors' bytes, as JSON, the hash of it all included."""
        digest = hashlib.sha256(self._described("").encode())
        for state in self.states.values():
            digest.update(state.data)
        return self._described(digest.hexdigest())

    def _described(self, sha256: str) -> str:
        states = {label: state.entries for label, state in self.states.items()}
        return json.dumps({"meta": self.meta, "states": states, "sha256": sha256})


def opened(header: str, data_of: Callable[[str, int], bytes]) -> Parcel:
    """The parcel of a :meth:`Parcel.header`; ``data_of(label, size)`` gives each state's bytes, in order.

    Raises:
        UserError: the bytes are not those that were sent.
    """
    found = json.loads(header)
    states = {}
    for label, listed in found["states"].items():
        entries = tuple(Entry(name, dtype, tuple(shape), size) for name, dtype, shape, size in listed)
        states[label] = Packed(entries, data_of(label, sum(entry.size for entry in entries)))
    parcel = Parcel(dict(found["meta"]), states)
    if json.loads(parcel.header())["sha256"] != found["sha256"]:
        raise UserError("A message arrived with other bytes than were sent: its sha256 differs.")
    return parcel


def to_records(parcel: Parcel) -> RecordDict:
    """``parcel`` as the content of a Flower message; Flower cuts large arrays into chunks by itself."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    records = RecordDict({META: ConfigRecord({"header": parcel.header()})})
    for label, state in parcel.states.items():
        array = Array("uint8", (len(state.data),), STYPE, state.data)
        records[f"{STATE}{label}"] = ArrayRecord({STYPE: array})
    return records


def from_records(records: RecordDict) -> Parcel:
    """What :func:`to_records` packed.

    Raises:
        UserError: the message is not one of ours, or its bytes are not those that were sent.
    """
    arrays = records.array_records
    try:
        header = str(records.config_records[META]["header"])
        return opened(header, lambda label, size: arrays[f"{STATE}{label}"][STYPE].data)
    except UserError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"A Flower message is not one of fedbias_plugin's ({error!r}).") from error


def send(parcel: Parcel, write: Callable[[bytes], Any]) -> None:
    """Write ``parcel`` to a stream: the header's length, the header, the tensors' bytes."""
    header = parcel.header().encode()
    write(struct.pack("<Q", len(header)))
    write(header)
    for state in parcel.states.values():
        write(state.data)


def receive(read: Callable[[int], bytes]) -> Parcel:
    """What :func:`send` wrote; ``read(n)`` gives up to n bytes and none at the end.

    Raises:
        EOFError: the stream ended before the parcel did.
        UserError: the bytes are not those that were sent.
    """
    (size,) = struct.unpack("<Q", exactly(read, 8))
    if size > LARGEST_HEADER:
        raise UserError("What came through the socket is no message of fedbias_plugin.")
    header = exactly(read, size).decode()
    return opened(header, lambda label, count: exactly(read, count))


def exactly(read: Callable[[int], bytes], count: int) -> bytes:
    """So many bytes of a stream; ``read(n)`` gives up to n.

    Raises:
        EOFError: it ended before.
    """
    parts, missing = [], count
    while missing:
        part = read(min(missing, 2**24))
        if not part:
            raise EOFError(f"{missing} of {count} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def packed(state: Mapping[str, torch.Tensor]) -> Packed:
    """A state as bytes."""
    import torch

    entries, parts = [], []
    for name, tensor in state.items():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        entries.append(Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), flat.numel()))
        parts.append(flat.numpy().data)
    return Packed(tuple(entries), b"".join(parts))


def unpacked(state: Packed) -> State:
    """The state of :func:`packed`, in memory of its own.

    Raises:
        UserError: a dtype is none, or the bytes do not fill the shapes.
    """
    import torch

    found: State = {}
    memory, begin = bytearray(state.data), 0
    for name, kind, shape, size in state.entries:
        dtype = getattr(torch, str(kind), None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"{name!r} has the dtype {kind!r}, which torch does not know.")
        if size < 0 or begin + size > len(memory) or size != math.prod(shape) * dtype.itemsize:
            raise UserError(f"{name!r}: {size} bytes are no {kind} of shape {shape}.")
        empty = torch.empty(shape, dtype=dtype)
        flat = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=begin) if size else None
        found[name] = empty if flat is None else flat.clone().view(dtype).reshape(shape)
        begin += size
    return found
