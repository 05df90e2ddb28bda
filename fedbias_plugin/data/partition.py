"""Who trains on what: every client's rows, and what is written down of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError


@dataclass(frozen=True)
class ClientDataset:
    """The rows of one client, in training order.

    ``biased_share`` is the share of biased rows that was asked for, in [0, 1]; None where the split knows of none.
    ``notes`` are what transforms say of the rows, for the manifest: name -> number or short text. ``test`` are rows of
    its own that it does not train on (``--client_test_fraction``).
    """

    client: int
    rows: tuple[Row, ...]
    biased_share: float | None = None
    notes: Mapping[str, int | str] = field(default_factory=dict, hash=False)
    test: tuple[Row, ...] = ()

    @property
    def biased_rows(self) -> int:
        """Number of biased rows the client holds."""
        return sum(row.biased for row in self.rows)

    @property
    def exact_share(self) -> float:
        """Share of biased rows the client holds, after rounding to whole rows."""
        return self.biased_rows / len(self.rows)

    @property
    def units(self) -> list[int]:
        """The unit of privacy of every row, a number from 0 in the order of their first rows (:attr:`Row.unit`)."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(row.unit or row.id, len(numbers)) for row in self.rows]


@dataclass(frozen=True)
class Partition:
    """Every client's rows, and clean rows that no client holds.

    ``sources`` are the data sets dealt from, by kind: ``clean`` and ``biased``, ``preference`` alone, or what a split
    of another package calls them. ``scenario`` is the split's name, ``notes`` what else is known of how rows were
    dealt, for the manifest; ``label_field`` is the label by which rows are counted there, None where they have none.
    """

    clients: list[ClientDataset]
    heldout: tuple[Row, ...]
    sources: dict[str, RowSource]
    seed: int
    scenario: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    label_field: str | None = None

    @property
    def known_shares(self) -> dict[int, float]:
        """Client id -> share of biased rows that was asked for, where it is known."""
        return {client.client: client.biased_share for client in self.clients if client.biased_share is not None}

    def check(self, num_clients: int) -> None:
        """Refuse what a split of another package may deal: a client without rows, or too few or too many clients.

        Raises:
            UserError: naming the first client that is not as it must be.
        """
        dealt = {dataset.client: len(dataset.rows) for dataset in self.clients}
        for client in sorted({*range(num_clients), *dealt}):
            if (client in range(num_clients)) != (dealt.get(client, 0) > 0):
                raise UserError(
                    f"--scenario {self.scenario} dealt {dealt.get(client, 0):,} rows to client {client}; with "
                    f"--num_clients {num_clients} the clients 0 to {num_clients - 1} need rows, and nobody else."
                )


def manifest(partition: Partition) -> dict[str, Any]:
    """What every client holds, as plain JSON without any text of a row.

    Per client: ``client``, ``rows``, ``biased_rows``, ``biased_share`` (asked for), ``biased_share_exact``,
    ``sources`` (rows by source), ``labels`` (rows by label, where they have one), ``row_ids_sha256``, what transforms
    noted, and of rows kept for a test the same under ``test``; ``heldout`` likewise; the ``sources``
    with file names, sha256, origin and row counts; ``seed`` and ``scenario``. ``row_ids_sha256`` is the SHA-256 of the
    row ids in training order, each followed by a line feed.
    """
    return {
        "format": 1,
        "scenario": partition.scenario,
        "seed": partition.seed,
        **partition.notes,
        **({"label_field": partition.label_field} if partition.label_field else {}),
        "clients": [
            {
                "client": dataset.client,
                "biased_share": dataset.biased_share,
                "biased_share_exact": dataset.exact_share,
                "biased_rows": dataset.biased_rows,
                **_summary(dataset.rows, partition.label_field),
                **dataset.notes,
                **({"test": _summary(dataset.test, partition.label_field)} if dataset.test else {}),
            }
            for dataset in partition.clients
        ],
        "heldout": _summary(partition.heldout, partition.label_field),
        "sources": {
            kind: {
                "name": source.name,
                "origin": source.origin,
                "files": [path.name for path in source.paths],
                "sha256": source.sha256,
                "rows": len(source.rows),
                "dropped_repeated": source.duplicates,
                "dropped_empty": source.empty,
                **({"dropped_contradicting": source.contradicting} if source.contradicting else {}),
            }
            for kind, source in partition.sources.items()
        },
    }


def partition_hash(partition: Partition) -> str:
    """sha256 of which client holds which rows of which files, where those files lie left aside."""
    sources = [f"{kind} {source.sha256}" for kind, source in partition.sources.items()]
    clients = [f"{client.client} {rows_hash(client.rows)}" for client in partition.clients]
    return hashlib.sha256("\n".join([*sources, *clients]).encode()).hexdigest()


def rows_hash(rows: Sequence[Row]) -> str:
    """sha256 of the row ids in training order, each followed by a line feed."""
    return hashlib.sha256("".join(f"{row.id}\n" for row in rows).encode()).hexdigest()


def label_counts(rows: Sequence[Row], label_field: str) -> dict[str, int]:
    """Label -> rows, in the order of the labels; rows without one (biased ones may have none) are left out."""
    return dict(sorted(Counter(row.labels[label_field] for row in rows if label_field in row.labels).items()))


def _summary(rows: Sequence[Row], label_field: str | None) -> dict[str, Any]:
    sources = dict(Counter(row.source for row in rows))
    labels = {"labels": label_counts(rows, label_field)} if label_field else {}
    return {"rows": len(rows), "sources": sources, **labels, "row_ids_sha256": rows_hash(rows)}
