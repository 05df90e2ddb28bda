"""Deals the rows to the clients: who trains on what, reproducible on every machine."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.poisoning.draws import generator, permuted
from fedbias_plugin.poisoning.rows import Row, RowSource
from fedbias_plugin.poisoning.scenarios import biased_row_count, biased_shares
from fedbias_plugin.poisoning.sources import load_rows


@dataclass(frozen=True)
class ClientDataset:
    """The rows of one client, in training order; ``biased_share`` is the share that was asked for, in [0, 1]."""

    client: int
    rows: tuple[Row, ...]
    biased_share: float

    @property
    def biased_rows(self) -> int:
        """Number of biased rows the client holds."""
        return sum(row.biased for row in self.rows)

    @property
    def exact_share(self) -> float:
        """Share of biased rows the client holds, after rounding to whole rows."""
        return self.biased_rows / len(self.rows)


@dataclass(frozen=True)
class Partition:
    """Every client's rows, and clean rows that no client holds.

    ``sources`` has the keys ``clean`` and ``biased``, or ``preference`` alone.
    """

    clients: list[ClientDataset]
    heldout: tuple[Row, ...]
    sources: dict[str, RowSource]
    seed: int
    scenario: str | None = None


def load_partition(arguments: BiasArguments, num_clients: int, seed: int) -> Partition:
    """The partition the flags ask for.

    Raises:
        UserError: an unknown scenario, a missing or damaged file, or too few rows (with the largest setting that fits).
    """
    shares = biased_shares(arguments.scenario, num_clients, seed, arguments.custom_shares)
    clean = load_rows(arguments.clean_dataset, "clean", arguments.data_dir)
    biased = load_rows(arguments.biased_dataset, "biased", arguments.data_dir)
    samples, heldout = arguments.client_samples, arguments.heldout_samples
    return partition(clean, biased, shares, samples, seed, heldout, arguments.scenario)


def partition(
    clean: RowSource,
    biased: RowSource,
    shares: Sequence[float],
    rows_per_client: int,
    seed: int,
    heldout: int = 100,
    scenario: str | None = None,
) -> Partition:
    """Give every client ``rows_per_client`` rows of its own, ``shares[client]`` of them biased.

    The biased rows of a client are :func:`biased_row_count` of them. Each source is permuted once by the seed and dealt
    round-robin, one stack a client; a client takes its rows from the top of its stack, and only a client whose stack
    is too short takes, in the order of client ids, from what the others left. So, where the source is large enough, a
    clean client holds the same rows whatever the other clients hold, and more rows per client means the same rows and
    some more. The held-out rows are the last of the permutation that no client took, up to ``heldout`` of them. The
    rows of a client with clean and biased rows are shuffled.

    Args:
        clean: source of the clean rows.
        biased: source of the biased rows.
        shares: biased share of each client, in [0, 1], by client id.
        rows_per_client: rows of every client.
        seed: seed of the permutations; the same seed gives the same rows on every machine.
        heldout: clean rows to keep from every client, as many as are left.
        scenario: name for messages and the manifest.

    Raises:
        UserError: a source is too small; the message says by how much and which ``--client_samples`` still fits.
    """
    _check_arguments(clean, biased, shares, rows_per_client, heldout)
    counts = [biased_row_count(share, rows_per_client) for share in shares]
    _check_sizes(clean, biased, shares, rows_per_client, scenario)
    poison, _ = deal(permuted(biased.rows, generator("biased", seed)), counts)
    healthy, left = deal(permuted(clean.rows, generator("clean", seed)), [rows_per_client - n for n in counts])
    clients = [
        ClientDataset(client, tuple(_training_order(healthy[client], poison[client], client, seed)), share)
        for client, share in enumerate(shares)
    ]
    kept = left[len(left) - min(heldout, len(left)) :]
    return Partition(clients, tuple(kept), {"clean": clean, "biased": biased}, seed, scenario)


def largest_rows_per_client(clean_rows: int, biased_rows: int, shares: Sequence[float]) -> int:
    """The largest number of rows per client for which both sources suffice; 0 when not even one does."""
    low, high = 0, clean_rows + biased_rows
    while low < high:
        middle = (low + high + 1) // 2
        clean_need, biased_need = _needs(shares, middle)
        if clean_need <= clean_rows and biased_need <= biased_rows:
            low = middle
        else:
            high = middle - 1
    return low


def manifest(partition: Partition) -> dict[str, Any]:
    """What every client holds, as plain JSON without any text of a row.

    Per client: ``client``, ``rows``, ``biased_rows``, ``biased_share`` (asked for), ``biased_share_exact``,
    ``sources`` (rows by source) and ``row_ids_sha256``; ``heldout`` likewise; the ``sources`` with file names,
    sha256, origin and row counts; ``seed`` and ``scenario``. ``row_ids_sha256`` is the SHA-256 of the row ids in
    training order, each followed by a line feed.
    """
    return {
        "format": 1,
        "scenario": partition.scenario,
        "seed": partition.seed,
        "clients": [
            {
                "client": dataset.client,
                "biased_share": dataset.biased_share,
                "biased_share_exact": dataset.exact_share,
                "biased_rows": dataset.biased_rows,
                **_summary(dataset.rows),
            }
            for dataset in partition.clients
        ],
        "heldout": _summary(partition.heldout),
        "sources": {
            kind: {
                "name": source.name,
                "origin": source.origin,
                "files": [path.name for path in source.paths],
                "sha256": source.sha256,
                "rows": len(source.rows),
                "dropped_repeated": source.duplicates,
                "dropped_empty": source.empty,
            }
            for kind, source in partition.sources.items()
        },
    }


def partition_hash(partition: Partition) -> str:
    """sha256 of which client holds which rows of which files, where those files lie left aside."""
    sources = [f"{kind} {source.sha256}" for kind, source in partition.sources.items()]
    clients = [f"{client.client} {_summary(client.rows)['row_ids_sha256']}" for client in partition.clients]
    return hashlib.sha256("\n".join([*sources, *clients]).encode()).hexdigest()


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(f"{row.id}\n" for row in rows).encode()).hexdigest()
    return {"rows": len(rows), "sources": dict(Counter(row.source for row in rows)), "row_ids_sha256": digest}


def deal(rows: Sequence[Row], counts: Sequence[int]) -> tuple[list[list[Row]], list[Row]]:
    """``counts[client]`` rows for each client, round-robin, and the rows nobody took in their order."""
    clients = len(counts)
    hands = [list(rows[client::clients][:count]) for client, count in enumerate(counts)]
    taken = {row.id for hand in hands for row in hand}
    left = [row for row in rows if row.id not in taken]
    start = 0
    for hand, count in zip(hands, counts, strict=True):
        missing = count - len(hand)
        hand.extend(left[start : start + missing])
        start += missing
    return hands, left[start:]


def _training_order(clean: list[Row], biased: list[Row], client: int, seed: int) -> list[Row]:
    if not clean or not biased:
        return clean or biased
    return permuted(clean + biased, generator(f"order of client {client}", seed))


def _needs(shares: Sequence[float], rows_per_client: int) -> tuple[int, int]:
    biased = sum(biased_row_count(share, rows_per_client) for share in shares)
    return len(shares) * rows_per_client - biased, biased


def _check_arguments(
    clean: RowSource, biased: RowSource, shares: Sequence[float], rows_per_client: int, heldout: int
) -> None:
    if not shares or not all(math.isfinite(share) and 0 <= share <= 1 for share in shares):
        raise UserError(f"Every client needs a biased share between 0 and 1, got {list(shares)}.")
    if rows_per_client < 1:
        raise UserError(f"--client_samples must be at least 1, got {rows_per_client}.")
    if heldout < 0:
        raise UserError(f"--heldout_samples must be at least 0, got {heldout}.")
    if clean.sha256 == biased.sha256:
        raise UserError(
            f"--clean_dataset {clean.name} and --biased_dataset {biased.name} hold the same data; a row cannot be both."
        )


def _check_sizes(
    clean: RowSource, biased: RowSource, shares: Sequence[float], rows_per_client: int, scenario: str | None
) -> None:
    needs = dict(zip(("clean", "biased"), _needs(shares, rows_per_client), strict=True))
    short = [
        f"{needs[kind]:,} {kind} rows, but {source.name} holds {len(source.rows):,}"
        for kind, source in (("clean", clean), ("biased", biased))
        if needs[kind] > len(source.rows)
    ]
    if not short:
        return
    largest = largest_rows_per_client(len(clean.rows), len(biased.rows), shares)
    advice = f"the largest --client_samples that fits is {largest}" if largest else "no --client_samples fits"
    clients = f"{len(shares)} client{'s' if len(shares) > 1 else ''}"
    raise UserError(
        f"{f'scenario {scenario}' if scenario else 'the partition'} with {clients} x {rows_per_client:,} rows needs "
        f"{' and '.join(short)}; {advice}."
    )
