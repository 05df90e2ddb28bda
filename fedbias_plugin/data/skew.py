"""Deals clean rows unevenly: whatever says which client gets which, the rest is done here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.data.dealing import biased_row_count, round_robin
from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError


def kept_apart(clean: RowSource, heldout: int, seed: int) -> tuple[list[Row], list[Row]]:
    """``heldout`` rows that no client gets, a random sample of all, and the others in a random order.

    Raises:
        UserError: no row is left for the clients.
    """
    rows = permuted(clean.rows, generator("clean", seed))
    if heldout >= len(rows):
        raise UserError(
            f"--heldout_samples {heldout:,} takes all of the {len(rows):,} rows of {clean.name}; none is left for the "
            "clients."
        )
    return rows[:heldout], rows[heldout:]


def value_of(row: Row, column: str, flag: str) -> str:
    """The row's value of a further column of its data set.

    Raises:
        UserError: the row has none; its data set's columns of that kind are named.
    """
    if column not in row.labels:
        found = ", ".join(sorted(row.labels)) or "none"
        raise UserError(
            f"--{flag} {column}: row {row.id} has no value of it. Columns of {row.source} with short texts: {found}. "
            "Dolly has category: --clean_dataset dolly."
        )
    return row.labels[column]


def skewed_partition(
    hands: Sequence[Sequence[Row]],
    heldout: Sequence[Row],
    sources: Mapping[str, RowSource],
    shares: Sequence[float],
    most: int,
    seed: int,
    scenario: str | None,
    *,
    notes: Mapping[str, Any],
) -> Partition:
    """Each client's hand, cut to ``most`` rows, with biased rows in the place of its share of them.

    A client's rows are permuted first, so that what is cut or replaced is a random part of them. A row stands with one
    client or nobody: those that are cut or replaced are nobody's.

    Args:
        hands: clean rows of every client, none twice.
        heldout: clean rows that no client holds.
        sources: ``clean``, and ``biased`` where a share is above 0.
        shares: biased share of each client, in [0, 1].
        most: rows of a client.
        seed: of the permutations.
        scenario: for the manifest.
        notes: for the manifest.

    Raises:
        UserError: there are too few biased rows.
    """
    held = [permuted(hand, generator(f"rows of client {client}", seed))[:most] for client, hand in enumerate(hands)]
    counts = [biased_row_count(share, len(rows)) for share, rows in zip(shares, held, strict=True)]
    biased = sources.get("biased")
    if sum(counts) > (0 if biased is None else len(biased.rows)):
        raise UserError(
            f"The poisoned clients would hold {sum(counts):,} biased rows, but "
            f"{biased.name if biased else 'no data set'} holds {len(biased.rows) if biased else 0:,}; give a smaller "
            "--client_samples."
        )
    poison, _ = round_robin(permuted(biased.rows if biased else (), generator("biased", seed)), counts)
    clients = []
    for client, (rows, bad, share) in enumerate(zip(held, poison, shares, strict=True)):
        kept = rows[: len(rows) - len(bad)] + bad
        if bad and len(bad) < len(rows):
            kept = permuted(kept, generator(f"order of client {client}", seed))
        clients.append(ClientDataset(client, tuple(kept), share))
    cut = sum(map(len, hands)) - sum(map(len, held))
    return Partition(clients, tuple(heldout), dict(sources), seed, scenario, {**notes, "cut_by_client_samples": cut})
