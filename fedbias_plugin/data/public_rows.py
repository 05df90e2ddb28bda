"""Rows that a server may train on: public ones, which are no client's and nobody measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.data.partition import Partition
from fedbias_plugin.data.rows import Row
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.registry import load

MOST = 1024
"""Rows that ``auto`` takes."""


def public_rows(given: str, partition: Partition | None, flags: Mapping[str, Any]) -> list[Row]:
    """The rows of the data set that was ``given``; of ``auto`` the first of the clean ones (of the preferences) that
    nobody holds or measures, told by their texts.

    Raises:
        UserError: there are none.
    """
    kind = "preference" if load("task", flags["task"]).reads_preferences else "clean"
    if given != "auto":
        return load_rows(given, kind, flags["data_dir"], flags["columns"]).rows
    spare: list[Row] = []
    if partition is not None and kind in partition.sources:
        groups = [rows for client in partition.clients for rows in (client.rows, client.test)]
        used = {_texts(row) for rows in [*groups, partition.heldout] for row in rows}
        spare = [row for row in partition.sources[kind].rows if _texts(row) not in used]
    if not spare:
        raise UserError(
            f"--ot_public auto: every row of the {kind} data is a client's or measured, and the server needs public "
            "ones to align the emulator: give --ot_public FILE, a smaller --client_samples, or --ot_align none."
        )
    return spare[:MOST]


def _texts(row: Row) -> tuple[str, frozenset[str | None]]:
    """The same for a preference whose responses were exchanged."""
    return row.instruction, frozenset((row.response, row.rejected))
