"""What goes over the wire: every dtype bit for bit, and nothing that was damaged."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is an extra of its own")

from flwr.app import ConfigRecord, RecordDict

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.flower.wire import (
    META,
    Entry,
    Packed,
    Parcel,
    from_records,
    opened,
    packed,
    receive,
    send,
    to_records,
    unpacked,
)

STATE = {
    "float32": torch.tensor([[1.5, -0.0], [torch.inf, 1e-45]]),
    "nan": torch.tensor([0x7FC00001, -1], dtype=torch.int32).view(torch.float32),
    "bfloat16": torch.tensor([0.1, -3.0, torch.nan], dtype=torch.bfloat16),
    "float16": torch.tensor([6e-8, 65504.0], dtype=torch.float16),
    "scalar": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
}


def through_flower(parcel: Parcel) -> Parcel:
    return from_records(to_records(parcel))


def through_a_socket(parcel: Parcel) -> Parcel:
    sent = bytearray()
    send(parcel, sent.extend)

    def read(count: int) -> bytes:
        part = bytes(sent[: min(count, 7)])  # a socket gives as little as it likes
        del sent[: len(part)]
        return part

    found = receive(read)
    assert not sent
    return found


@pytest.mark.parametrize("way", [through_flower, through_a_socket])
def test_every_dtype_arrives_bit_for_bit_in_its_order(way):
    found = way(Parcel({"round": 3, "name": "Ü"}, {"theta": packed(STATE), "kept control": packed({})}))
    assert (found.meta, list(found.states)) == ({"round": 3, "name": "Ü"}, ["theta", "kept control"])
    state = unpacked(found.states["theta"])
    assert list(state) == list(STATE)
    for name, tensor in STATE.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape)
        same = tensor.contiguous().reshape(-1).view(torch.uint8), state[name].reshape(-1).view(torch.uint8)
        assert torch.equal(*same), name
    assert found.payload == sum(tensor.numel() * tensor.element_size() for tensor in STATE.values())


def test_both_ends_count_the_same_bytes_on_the_wire():
    sent = Parcel(
        {"round": 3}, {"theta": packed({"w": torch.ones(1000)}), "kept control": packed({"w": torch.ones(9)})}
    )
    assert (sent.payload, sent.wire) == (4036, 4036 + len(sent.header()))
    assert through_flower(sent).wire == sent.wire


def test_what_was_unpacked_is_in_memory_of_its_own():
    raw = packed({"w": torch.zeros(2)})
    unpacked(raw)["w"].fill_(1)
    assert torch.equal(unpacked(raw)["w"], torch.zeros(2))


@pytest.mark.parametrize("what", ["tensor", "fact", "name", "shape", "order"])
def test_anything_that_was_changed_on_the_way_is_noticed(what):
    parcel = Parcel({"rows": 8}, {"state": packed({"a": torch.ones(4), "b": torch.zeros(4)})})
    header = json.loads(parcel.header())
    data = parcel.states["state"].data
    entries = header["states"]["state"]
    if what == "tensor":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif what == "fact":
        header["meta"]["rows"] = 9
    elif what == "name":
        entries[0][0] = "c"
    elif what == "shape":
        entries[0][2] = [2, 2]
    else:
        entries.reverse()
    with pytest.raises(UserError, match="other bytes than were sent"):
        opened(json.dumps(header), lambda label, size: data)


@pytest.mark.parametrize("header", ["", "[]", "{}", '{"meta": [], "states": []}', '{"meta": {}, "states": {"a": 1}}'])
def test_a_message_of_somebody_else_is_refused_with_a_sentence(header):
    with pytest.raises(UserError, match="is not one of fedbias_plugin's"):
        from_records(RecordDict({META: ConfigRecord({"header": header})}))
    with pytest.raises(UserError, match="is not one of fedbias_plugin's"):
        from_records(RecordDict())


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [("float33", (1,), 4), ("float32", (2,), 4), ("float32", (1,), 3), ("nn", (1,), 4), ("float32", (2,), 8)],
    ids=["no dtype", "another shape", "half a number", "a module", "more than there is"],
)
def test_bytes_that_are_no_tensor_are_refused_by_name(dtype, shape, size):
    with pytest.raises(UserError, match="'w'"):
        unpacked(Packed((Entry("w", dtype, shape, size),), b"1234"))


def test_a_stream_that_ends_early_or_is_nothing_of_ours_is_no_message():
    sent = bytearray()
    send(Parcel({}, {"state": packed({"w": torch.ones(4)})}), sent.extend)
    short = bytes(sent[:-1])
    parts = iter([short[i : i + 1] for i in range(len(short))] + [b""])
    with pytest.raises(EOFError):
        receive(lambda count: next(parts))
    with pytest.raises(UserError, match="is no message of fedbias_plugin"):
        receive(lambda count: b"\xff" * count)
