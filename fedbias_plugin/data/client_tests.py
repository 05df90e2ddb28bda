"""A test part of every client's own rows, which no client trains on: the global model is measured on it."""

from __future__ import annotations

import dataclasses

from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.errors import UserError


def with_client_tests(partition: Partition, fraction: float, seed: int) -> Partition:
    """``partition`` with ``fraction`` of every client's rows moved to its ``test`` rows; as it is at 0.

    Which rows: a permutation of its own by the seed and the client's id. At least one row is tested and one trained on.
    Call it before any transform: a copy of a test row must not be trained on.

    Raises:
        UserError: a client has a single row.
    """
    if not fraction:
        return partition
    return dataclasses.replace(partition, clients=[_split(dataset, fraction, seed) for dataset in partition.clients])


def _split(dataset: ClientDataset, fraction: float, seed: int) -> ClientDataset:
    count = len(dataset.rows)
    if count < 2:
        raise UserError(
            f"--client_test_fraction {fraction:g} takes test rows from every client, and client {dataset.client} has "
            f"{count} row: one to test on and one to train on are the least. Give more rows, or 0."
        )
    tested = rows_tested(count, fraction)
    drawn = set(permuted(range(count), generator(f"test rows of client {dataset.client}", seed))[:tested])
    kept = tuple(row for index, row in enumerate(dataset.rows) if index not in drawn)
    test = tuple(row for index, row in enumerate(dataset.rows) if index in drawn)
    return dataclasses.replace(dataset, rows=kept, test=test)


def rows_tested(rows: int, fraction: float) -> int:
    """How many of a client's ``rows`` (at least 2) are test rows: ``fraction`` of them to the nearest, from 1 on.

    >>> [rows_tested(rows, 0.2) for rows in (2, 8, 300)]
    [1, 2, 60]
    """
    return min(max(round(fraction * rows), 1), rows - 1)
