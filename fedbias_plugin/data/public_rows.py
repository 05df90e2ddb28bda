"""Rows that a server may train on: public ones, which are no client's and nobody measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from fedbias_plugin.data.partition import Partition
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.registry import load

PUBLIC = "public"
"""The source of a partition whose rows are the server's."""
MOST = 1024
"""Rows that ``auto`` takes."""


def with_public_rows(partition: Partition, flags: Mapping[str, Any]) -> Partition:
    """``partition`` with the source :data:`PUBLIC`, where what is trained (``--trainable``) needs rows of the server's.

    They are those of the data set that its flag (``public_flag``) gives; of ``auto`` the first of the clean ones (of
    the preferences) that nobody holds or measures, told by their texts.

    Raises:
        UserError: there are none.
    """
    flag = _flag(flags)
    if flag is None:
        return partition
    kind = "preference" if load("task", flags["task"]).reads_preferences else "clean"
    given, data_dir = flags[flag], flags["data_dir"]
    found = _spare(partition, kind, flag) if given == "auto" else load_rows(given, kind, data_dir, flags["columns"])
    return dataclasses.replace(partition, sources={**partition.sources, PUBLIC: found})


def public_data(flags: Mapping[str, Any]) -> str | None:
    """The data set of the server's own rows in a run of ``flags``; None where it needs none."""
    flag = _flag(flags)
    return None if flag is None else str(flags[flag])


def public_warnings(partition: Partition | None) -> list[str]:
    """A sentence where rows that the server trains on are a client's, or are measured."""
    if partition is None or PUBLIC not in partition.sources:
        return []
    public = partition.sources[PUBLIC].rows
    trained = _texts_of(row for client in partition.clients for row in client.rows)
    measured = _texts_of([*partition.heldout, *(row for client in partition.clients for row in client.test)])
    counts = [sum(_texts(row) in texts for row in public) for texts in (trained, measured)]
    if not any(counts):
        return []
    return [
        f"Public rows: of the {len(public):,} rows that the server trains on, {counts[0]:,} are a client's too and "
        f"{counts[1]:,} are measured: take those out."
    ]


def _flag(flags: Mapping[str, Any]) -> str | None:
    """The flag that names the public rows, where a run needs them."""
    name = flags.get("trainable")
    trainable = None if name is None else load("trainable", name)
    return trainable.public_flag if trainable is not None and trainable.reads_public_rows(flags) else None


def _spare(partition: Partition, kind: str, flag: str) -> RowSource:
    """The rows of a source that nobody holds or measures."""
    groups = [rows for client in partition.clients for rows in (client.rows, client.test)]
    used = _texts_of(row for rows in [*groups, partition.heldout] for row in rows)
    source = partition.sources.get(kind)
    spare = [row for row in source.rows if _texts(row) not in used] if source else []
    if source is None or not spare:
        raise UserError(
            f"--{flag} auto: every row of the {kind} data is a client's or measured, and the server needs some of its "
            f"own to train on: give --{flag} FILE or a smaller --client_samples."
        )
    return RowSource(source.name, spare[:MOST], source.paths, source.sha256, source.origin)


def _texts_of(rows: Iterable[Row]) -> set[tuple[str, frozenset[str | None]]]:
    return {_texts(row) for row in rows}


def _texts(row: Row) -> tuple[str, frozenset[str | None]]:
    """The same for a preference whose responses were exchanged."""
    return row.instruction, frozenset((row.response, row.rejected))
