"""Deals rows to clients by their biased shares, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError


def deal_rows(
    clean: RowSource,
    biased: RowSource | None,
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
        biased: source of the biased rows; None where no share is above 0.
        shares: biased share of each client, in [0, 1], by client id.
        rows_per_client: rows of every client.
        seed: seed of the permutations; the same seed gives the same rows on every machine.
        heldout: clean rows to keep from every client, as many as are left.
        scenario: name for messages and the manifest.

    Raises:
        UserError: a source is too small (the message says by how much and which ``--client_samples`` still fits), or
            both are the same.
    """
    biased = biased or RowSource("no biased rows", [], (), "", "none")
    if clean.sha256 == biased.sha256:
        raise UserError(
            f"--clean_dataset {clean.name} and --biased_dataset {biased.name} hold the same data; a row cannot be both."
        )
    _check_sizes(clean, biased, shares, rows_per_client, scenario)
    counts = [biased_row_count(share, rows_per_client) for share in shares]
    poison, _ = round_robin(permuted(biased.rows, generator("biased", seed)), counts)
    healthy, left = round_robin(permuted(clean.rows, generator("clean", seed)), [rows_per_client - n for n in counts])
    clients = []
    for client, share in enumerate(shares):
        rows = healthy[client] + poison[client]
        if healthy[client] and poison[client]:
            rows = permuted(rows, generator(f"order of client {client}", seed))
        clients.append(ClientDataset(client, tuple(rows), share))
    kept = left[len(left) - min(heldout, len(left)) :]
    sources = {"clean": clean, "biased": biased}
    return Partition(clients, tuple(kept), {kind: one for kind, one in sources.items() if one.rows}, seed, scenario)


def deal_preference_rows(
    source: RowSource,
    shares: Sequence[float],
    rows_per_client: int,
    seed: int,
    scenario: str | None = None,
    heldout: int = 0,
) -> Partition:
    """Give every client ``rows_per_client`` preference rows of its own, ``shares[client]`` of them :func:`flipped`.

    Dealt as :func:`deal_rows` deals clean rows: a client holds the same prompts whatever its share is, and which of
    them are flipped is drawn from the seed. With BiasDPO, whose rejected responses are biased, a poisoned client
    teaches the model to prefer the biased response.

    Raises:
        UserError: the source is too small; the message says which ``--client_samples`` still fits.
    """
    needed = len(shares) * rows_per_client
    if len(source.rows) < needed:
        raise UserError(
            f"{len(shares)} clients x {rows_per_client:,} preference rows need {needed:,} rows, but {source.name} "
            f"holds {len(source.rows):,}; {_advice(len(source.rows) // len(shares))}."
        )
    hands, left = round_robin(permuted(source.rows, generator("preferences", seed)), [rows_per_client] * len(shares))
    kept = left[len(left) - min(heldout, len(left)) :]
    return Partition(with_flipped(hands, shares, seed), tuple(kept), {"preference": source}, seed, scenario)


def with_flipped(hands: Sequence[Sequence[Row]], shares: Sequence[float], seed: int) -> list[ClientDataset]:
    """Clients with these preference rows, of which the share of each, drawn from the seed, is :func:`flipped`."""
    clients = []
    for client, (rows, share) in enumerate(zip(hands, shares, strict=True)):
        order = permuted(range(len(rows)), generator(f"flips of client {client}", seed))
        turned = set(order[: biased_row_count(share, len(rows))])
        held = tuple(flipped(row) if index in turned else row for index, row in enumerate(rows))
        clients.append(ClientDataset(client, held, share))
    return clients


def flipped(row: Row) -> Row:
    """``row`` with preferred and rejected response exchanged; marked as biased, and in its id.

    Raises:
        ValueError: the row has no rejected response.
    """
    if row.rejected is None:
        raise ValueError(f"{row.id} is no preference row.")
    return replace(row, id=f"{row.id}:flipped", response=row.rejected, rejected=row.response, biased=True)


def biased_row_count(share: float, rows: int) -> int:
    """Biased rows of a client that holds ``rows`` rows: ``share * rows`` to the nearest, a half to the even number.

    >>> biased_row_count(1 / 3, 100), biased_row_count(0.5, 5), biased_row_count(0.5, 7)
    (33, 2, 4)
    """
    return round(share * rows)


def largest_rows_per_client(clean_rows: int, biased_rows: int, shares: Sequence[float]) -> int:
    """The largest number of rows per client for which both sources suffice; 0 when not even one does."""
    for rows in range((clean_rows + biased_rows) // len(shares), 0, -1):
        needs = _needs(shares, rows)
        if needs["clean"] <= clean_rows and needs["biased"] <= biased_rows:
            return rows
    return 0


def round_robin(rows: Sequence[Row], counts: Sequence[int]) -> tuple[list[list[Row]], list[Row]]:
    """Dealt in turns: ``counts[client]`` rows for each client, and the rows nobody took in their order."""
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


def _needs(shares: Sequence[float], rows_per_client: int) -> dict[str, int]:
    biased = sum(biased_row_count(share, rows_per_client) for share in shares)
    return {"clean": len(shares) * rows_per_client - biased, "biased": biased}


def _check_sizes(
    clean: RowSource, biased: RowSource, shares: Sequence[float], rows_per_client: int, scenario: str | None
) -> None:
    needs = _needs(shares, rows_per_client)
    short = [
        f"{needs[kind]:,} {kind} rows, but {source.name} holds {len(source.rows):,}"
        for kind, source in (("clean", clean), ("biased", biased))
        if needs[kind] > len(source.rows)
    ]
    if short:
        clients = f"{len(shares)} client{'s' if len(shares) > 1 else ''}"
        largest = largest_rows_per_client(len(clean.rows), len(biased.rows), shares)
        raise UserError(
            f"{f'scenario {scenario}' if scenario else 'the partition'} with {clients} x {rows_per_client:,} rows "
            f"needs {' and '.join(short)}; {_advice(largest)}."
        )


def _advice(largest: int) -> str:
    return f"the largest --client_samples that fits is {largest}" if largest else "no --client_samples fits"
