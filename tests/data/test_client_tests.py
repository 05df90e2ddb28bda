"""The rows that clients keep for a test."""

from __future__ import annotations

import pytest

from fedbias_plugin.data.cda import Cda
from fedbias_plugin.data.client_tests import with_client_tests
from fedbias_plugin.data.partition import ClientDataset, Partition, manifest
from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError


def dealt(*counts):
    clients = [
        ClientDataset(
            client, tuple(Row(f"s:{client}-{n}", "Say", f"His sister is {n}.", False, "s") for n in range(count))
        )
        for client, count in enumerate(counts)
    ]
    return Partition(clients, (), {}, 7)


def test_every_client_keeps_its_share_and_trains_on_the_rest_in_the_same_order():
    before = dealt(10, 300, 2)
    after = with_client_tests(before, 0.2, 7)
    assert [(len(one.rows), len(one.test)) for one in after.clients] == [(8, 2), (240, 60), (1, 1)]
    for whole, part in zip(before.clients, after.clients, strict=True):
        assert set(part.rows) | set(part.test) == set(whole.rows)
        assert list(part.rows) == [row for row in whole.rows if row in part.rows]


def test_the_seed_decides_which_and_a_client_does_not_depend_on_the_others():
    one, same, other = (with_client_tests(dealt(40, 40), 0.2, seed) for seed in (7, 7, 8))
    assert one == same
    assert one.clients[0].test != other.clients[0].test
    assert with_client_tests(dealt(40), 0.2, 7).clients[0] == one.clients[0]


def test_nothing_is_kept_at_0_and_a_single_row_is_refused():
    rows = dealt(3)
    assert with_client_tests(rows, 0.0, 7) is rows
    with pytest.raises(UserError, match=r"client 1 has 1 row: one to test on and one to train on"):
        with_client_tests(dealt(3, 1), 0.2, 7)


def test_no_copy_of_a_test_row_is_trained_on_and_the_manifest_names_both_parts():
    kept = with_client_tests(dealt(10), 0.2, 7)
    swapped = Cda(cda_ratio=1.0, cda_words="own").apply(kept, {}, 7)
    (client,) = swapped.clients
    assert len(client.rows) == 16
    assert client.test == kept.clients[0].test
    assert not {row.unit or row.id for row in client.rows} & {row.id for row in client.test}
    told = manifest(swapped)["clients"][0]
    assert (told["rows"], told["test"]["rows"]) == (16, 2)
    assert "test" not in manifest(dealt(10))["clients"][0]
