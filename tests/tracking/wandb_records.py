"""Reads back what W&B recorded offline: its own protobuf messages in a LevelDB-style log."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest


def recorded(path: Path) -> list[Any]:
    """Protocol records of a ``.wandb`` file: a LevelDB log behind a header of 7 bytes, in blocks of 32 KiB."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="this wandb has no readable records")
    data, position, parts, records = path.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if kind == 0:  # padding at the end of a block
            position += left
            continue
        if position + 7 + size > len(data):  # not yet whole
            break
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # full, or last part
            record = pb.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def offline_records(folder: Path) -> list[Any]:
    """What the newest offline run below ``folder`` recorded; W&B's own process may end its file a little later."""
    path = max(folder.glob("wandb/offline-run-*/run-*.wandb"))
    patience = time.monotonic() + 20
    while True:
        records = recorded(path)
        if kinds(records, "exit") or time.monotonic() > patience:
            return records
        time.sleep(0.05)


def kinds(records: list[Any], kind: str) -> list[Any]:
    """The records of one kind."""
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def items(entries: Any) -> dict[str, Any]:
    """Keys and values; versions differ in whether they nest keys or values."""
    flat: dict[str, Any] = {}
    for entry in entries:
        key, value = entry.key or "/".join(entry.nested_key), json.loads(entry.value_json)
        flat |= {f"{key}/{part}": leaf for part, leaf in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def summary_of(records: list[Any]) -> dict[str, Any]:
    """The run's summary after all updates."""
    summary: dict[str, Any] = {}
    for update in kinds(records, "summary"):
        summary |= items(update.update)
    return summary
