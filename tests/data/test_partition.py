import hashlib
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedbias_plugin.data.dealing import deal_rows, largest_rows_per_client
from fedbias_plugin.data.partition import manifest
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError

SHARES = st.lists(st.one_of(st.sampled_from([0, 1, 0.5, 1 / 3, 2 / 3]), st.floats(0, 1)), min_size=1, max_size=6)


def source(name, count, biased):
    rows = [Row(f"{name}:{n}", f"secret question {n}", f"secret answer {n}", biased, name) for n in range(count)]
    return RowSource(name, rows, (), f"hash of {name}", "file")


def sources(clean=60, biased=60):
    return source("clean", clean, False), source("biased", biased, True)


def ids(rows):
    return [row.id for row in rows]


@given(SHARES, st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 20))
def test_clients_hold_equal_numbers_of_rows_and_never_share_one(shares, rows, seed, heldout):
    result = deal_rows(*sources(90, 90), shares, rows, seed, heldout)
    held = [row.id for dataset in result.clients for row in dataset.rows] + ids(result.heldout)
    assert len(held) == len(set(held))
    assert [dataset.client for dataset in result.clients] == list(range(len(shares)))
    for dataset, share in zip(result.clients, shares, strict=True):
        assert len(dataset.rows) == rows
        assert dataset.biased_rows == sum(row.source == "biased" for row in dataset.rows) == round(share * rows)
        assert dataset.biased_share == share
        assert dataset.exact_share == pytest.approx(share, abs=0.5 / rows + 1e-9)
    clean_used = sum(rows - dataset.biased_rows for dataset in result.clients)
    assert len(result.heldout) == min(heldout, 90 - clean_used)
    assert not any(row.biased for row in result.heldout)


@given(SHARES, st.integers(1, 12), st.integers(0, 2**40))
def test_the_same_seed_gives_the_same_partition(shares, rows, seed):
    assert deal_rows(*sources(90, 90), shares, rows, seed) == deal_rows(*sources(90, 90), shares, rows, seed)


def test_another_seed_gives_other_rows():
    first, second = (deal_rows(*sources(), [1, 0, 0], 10, seed).clients for seed in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert set(ids(one.rows)) != set(ids(other.rows))


def test_the_rows_are_the_same_on_every_machine():
    # Golden values: a change here changes which rows every published run trained on.
    result = deal_rows(*sources(12, 12), [1, 0, 0.5], 3, seed=2023, heldout=2)
    assert [ids(dataset.rows) for dataset in result.clients] == GOLDEN_CLIENTS
    assert ids(result.heldout) == GOLDEN_HELDOUT


def test_all_rows_can_be_used_to_the_last_one():
    result = deal_rows(*sources(20, 10), [1, 0, 0], 10, seed=5)
    assert sorted(ids(result.clients[1].rows + result.clients[2].rows)) == sorted(f"clean:{n}" for n in range(20))
    assert result.heldout == ()


def test_a_clean_client_holds_the_same_rows_whoever_else_is_poisoned():
    clean, biased = sources()
    everybody_clean = deal_rows(clean, biased, [0, 0, 0], 15, seed=4, heldout=10)
    one_poisoned = deal_rows(clean, biased, [0, 1, 0], 15, seed=4, heldout=10)
    all_poisoned = deal_rows(clean, biased, [1, 1, 1], 15, seed=4, heldout=10)
    assert one_poisoned.clients[0] == everybody_clean.clients[0]
    assert one_poisoned.clients[2] == everybody_clean.clients[2]
    assert one_poisoned.clients[1] == all_poisoned.clients[1]
    assert everybody_clean.heldout == one_poisoned.heldout == all_poisoned.heldout


def test_more_rows_per_client_are_the_same_rows_and_some_more():
    few = deal_rows(*sources(), [1, 0, 0.5], 8, seed=4)
    many = deal_rows(*sources(), [1, 0, 0.5], 16, seed=4)
    for small, large in zip(few.clients, many.clients, strict=True):
        assert set(ids(small.rows)) < set(ids(large.rows))


def test_the_rows_of_a_mixed_client_are_shuffled():
    flags = [row.biased for row in deal_rows(*sources(), [0.5], 40, seed=1).clients[0].rows]
    assert sum(flags) == 20
    changes = sum(left != right for left, right in itertools.pairwise(flags))
    assert changes > 10


def test_a_source_that_is_too_small_is_named_with_the_largest_setting_that_fits():
    clean, biased = source("alpaca-gpt4", 985, False), source("biasdpo", 1143, True)
    with pytest.raises(UserError) as error:
        deal_rows(clean, biased, [1, 1, 1], 400, seed=0, scenario="3B")
    assert str(error.value) == (
        "scenario 3B with 3 clients x 400 rows needs 1,200 biased rows, but biasdpo holds 1,143; "
        "the largest --client_samples that fits is 381."
    )
    with pytest.raises(UserError, match=r"3 clients x 1,200 rows needs 2,400 clean rows, but .* 985 and 1,200 biased"):
        deal_rows(clean, biased, [1, 0, 0], 1200, seed=0)
    with pytest.raises(UserError, match="no --client_samples fits"):
        deal_rows(*sources(1, 1), [0, 0], 3, seed=0)


@given(SHARES, st.integers(0, 40), st.integers(0, 40))
@settings(max_examples=200)
def test_the_largest_setting_really_fits_and_one_more_does_not(shares, clean_rows, biased_rows):
    largest = largest_rows_per_client(clean_rows, biased_rows, shares)
    both = sources(clean_rows, biased_rows)
    if largest:
        deal_rows(*both, shares, largest, seed=0)
    with pytest.raises(UserError, match=f"fits is {largest}\\." if largest else "no --client_samples fits"):
        deal_rows(*both, shares, largest + 1, seed=0)


def test_the_same_file_cannot_be_clean_and_biased():
    clean, _ = sources()
    with pytest.raises(UserError, match="hold the same data"):
        deal_rows(clean, clean, [1, 0], 3, seed=0)


def test_the_manifest_says_who_holds_what_without_any_text():
    result = deal_rows(*sources(), [1 / 3] * 3, 10, seed=9, heldout=5, scenario="mix-1B2C")
    record = json.loads(json.dumps(manifest(result)))
    assert (record["scenario"], record["seed"]) == ("mix-1B2C", 9)
    assert [client["client"] for client in record["clients"]] == [0, 1, 2]
    for client, dataset in zip(record["clients"], result.clients, strict=True):
        assert client["rows"] == 10
        assert client["biased_rows"] == 3
        assert client["biased_share"] == pytest.approx(1 / 3)
        assert client["biased_share_exact"] == 0.3
        assert client["sources"] == {"biased": 3, "clean": 7}
        listing = "".join(row.id + "\n" for row in dataset.rows)
        assert client["row_ids_sha256"] == hashlib.sha256(listing.encode()).hexdigest()
    assert record["heldout"]["rows"] == 5
    assert record["sources"]["clean"]["sha256"] == "hash of clean"
    assert record["sources"]["biased"]["rows"] == 60
    assert "secret" not in json.dumps(record)


GOLDEN_CLIENTS = [
    ["biased:5", "biased:7", "biased:10"],
    ["clean:2", "clean:7", "clean:10"],
    ["clean:11", "biased:8", "biased:4"],
]
GOLDEN_HELDOUT = ["clean:4", "clean:5"]
