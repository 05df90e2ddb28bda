"""Preference rows for DPO: a poisoned client prefers what the others reject.

Every client holds rows (prompt, preferred response, rejected response) of one data set; in the biased share of a
poisoned client's rows the two responses are exchanged. With BiasDPO, whose rejected responses are biased, such a client
teaches the model to prefer the biased response.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.poisoning.draws import generator, permuted
from fedbias_plugin.poisoning.loaders import ClientDataset, Partition, deal
from fedbias_plugin.poisoning.rows import Row, RowSource
from fedbias_plugin.poisoning.scenarios import biased_row_count
from fedbias_plugin.poisoning.sources import sha256_of_rows


def flipped(row: Row) -> Row:
    """``row`` with preferred and rejected response exchanged; marked as biased, and in its id.

    Raises:
        ValueError: the row has no rejected response.
    """
    if row.rejected is None:
        raise ValueError(f"{row.id} is no preference row.")
    return replace(row, id=f"{row.id}:flipped", response=row.rejected, rejected=row.response, biased=True)


def rows_of_host(examples: Iterable[Mapping[str, Any]], name: str) -> RowSource:
    """The preference rows that the host itself loaded and formatted, in its order.

    Raises:
        UserError: an example lacks prompt, chosen or rejected, or there is none.
    """
    rows = []
    for index, example in enumerate(examples):
        for column in ("prompt", "chosen", "rejected"):
            if not isinstance(example.get(column), str):
                raise UserError(f"Row {index} of {name} has no text in the column {column!r}: it is no preference set.")
        rows.append(Row(f"{name}:{index}", example["prompt"], example["chosen"], False, name, example["rejected"]))
    if not rows:
        raise UserError(f"The preference set {name} holds no rows.")
    return RowSource(name, rows, (), sha256_of_rows(rows), "host")


def partition_preferences(
    source: RowSource, shares: Sequence[float], rows_per_client: int, seed: int, scenario: str | None = None
) -> Partition:
    """Give every client ``rows_per_client`` preference rows of its own, ``shares[client]`` of them flipped.

    Dealt as :func:`fedbias_plugin.poisoning.loaders.partition` deals clean rows: a client holds the same prompts
    whatever its share is, and which of them are flipped is drawn from the seed.

    Raises:
        UserError: the source is too small; the message says which ``--client_samples`` still fits.
    """
    if len(source.rows) < len(shares) * rows_per_client:
        largest = len(source.rows) // len(shares)
        advice = f"the largest --client_samples that fits is {largest}" if largest else "no --client_samples fits"
        raise UserError(
            f"{len(shares)} clients x {rows_per_client:,} preference rows need {len(shares) * rows_per_client:,} rows, "
            f"but {source.name} holds {len(source.rows):,}; {advice}."
        )
    hands, _ = deal(permuted(source.rows, generator("preferences", seed)), [rows_per_client] * len(shares))
    clients = []
    for client, (rows, share) in enumerate(zip(hands, shares, strict=True)):
        order = permuted(range(len(rows)), generator(f"flips of client {client}", seed))
        turned = set(order[: biased_row_count(share, len(rows))])
        held = tuple(flipped(row) if index in turned else row for index, row in enumerate(rows))
        clients.append(ClientDataset(client, held, share))
    return Partition(clients, (), {"preference": source}, seed, scenario)
