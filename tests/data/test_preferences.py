"""Which preference rows a poisoned client holds the wrong way round."""

from __future__ import annotations

import json

import pytest

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.dealing import deal_preference_rows, flipped
from fedbias_plugin.data.partition import manifest as described
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.data.sources import rows_of_host
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import dealt_rows


def source(count: int) -> RowSource:
    rows = [Row(f"pairs:{n}", f"Who {n}?", f"good {n}", False, "pairs", f"bad {n}") for n in range(count)]
    return RowSource("pairs", rows, (), "0" * 64, "file")


def test_flipping_exchanges_the_two_responses_and_marks_the_row():
    row = source(1).rows[0]
    assert flipped(row) == Row("pairs:0:flipped", "Who 0?", "bad 0", True, "pairs", "good 0")
    assert flipped(flipped(row)).response == row.response


def test_a_row_without_rejected_response_cannot_be_flipped():
    with pytest.raises(ValueError, match=r"^clean:3 is no preference row\.$"):
        flipped(Row("clean:3", "Who?", "I.", False, "clean"))


@pytest.mark.parametrize(
    ("share", "rows", "count"),
    [(0, 6, 0), (1, 6, 6), (0.5, 6, 3), (1 / 3, 6, 2), (2 / 3, 6, 4), (1 / 3, 100, 33), (0.5, 5, 2), (0.5, 7, 4)],
)
def test_so_many_rows_are_flipped_and_the_others_are_left(share, rows, count):
    (client,) = deal_preference_rows(source(rows), [share], rows, seed=3).clients
    assert client.biased_share == share
    assert len(client.rows) == rows
    assert sum(row.biased for row in client.rows) == count
    for row in client.rows:
        number = row.id.split(":")[1]
        right_way = (f"good {number}", f"bad {number}")
        assert (row.response, row.rejected) == (right_way[::-1] if row.biased else right_way)
        assert row.instruction == f"Who {number}?"


def test_a_client_holds_the_same_rows_whatever_its_share_and_the_flipped_ones_grow_with_it():
    deals = [deal_preference_rows(source(20), [share, 1, 0], 6, seed=3).clients for share in (0, 1 / 3, 2 / 3, 1)]
    ids = [[[row.instruction for row in client.rows] for client in clients] for clients in deals]
    assert ids[1:] == ids[:1] * 3
    assert len({row for client in ids[0] for row in client}) == 18
    turned = [{row.id for row in clients[0].rows if row.biased} for clients in deals]
    assert turned[0] < turned[1] < turned[2] < turned[3]
    assert all(clients[1:] == deals[0][1:] for clients in deals)


def test_the_seed_decides_who_holds_what_and_which_rows_are_flipped():
    one, again, other = (deal_preference_rows(source(12), [0.5, 0.5], 6, seed).clients for seed in (1, 1, 2))
    assert one == again
    assert [{row.id for row in client.rows} for client in one] != [{row.id for row in client.rows} for client in other]
    positions = [[row.biased for row in client.rows] for client in one]
    assert positions[0] != positions[1]


@pytest.mark.parametrize(
    ("rows", "advice"), [(11, "the largest --client_samples that fits is 3"), (2, "no --client_samples fits")]
)
def test_too_few_rows_are_refused_with_what_still_fits(rows, advice):
    message = rf"^3 clients x 1,000 preference rows need 3,000 rows, but pairs holds {rows}; {advice}\.$"
    with pytest.raises(UserError, match=message):
        deal_preference_rows(source(rows), [1, 0, 0], 1000, seed=0)


def test_the_partition_keeps_its_source_and_scenario_for_the_manifest():
    pairs = source(4)
    partition = deal_preference_rows(pairs, [1, 0], 2, seed=9, scenario="1B2C")
    assert (partition.sources, partition.scenario, partition.seed) == ({"preference": pairs}, "1B2C", 9)
    assert not partition.heldout


def test_a_run_keeps_pairs_that_no_client_holds_and_the_clients_rows_stay_what_they_are():
    pairs = source(10)
    without, kept = (deal_preference_rows(pairs, [1, 0], 3, 9, "1B2C", heldout) for heldout in (0, 100))
    assert kept.clients == without.clients
    held = {row.id.removesuffix(":flipped") for client in kept.clients for row in client.rows}
    assert {row.id for row in kept.heldout} == {row.id for row in pairs.rows} - held
    assert not any(row.biased for row in kept.heldout)
    assert len(deal_preference_rows(pairs, [1, 0], 3, 9, "1B2C", 2).heldout) == 2


def test_pairs_are_dealt_by_their_labels_too_and_then_flipped(tmp_path):
    rows = [
        {"prompt": f"Who {n}?", "chosen": f"good {n}", "rejected": f"bad {n}", "category": "ab"[n % 2]}
        for n in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"task": "dpo", "preference_dataset": str(tmp_path / "pairs.jsonl"), "heldout_samples": 10}
    told |= {"client_samples": 20, "partitioner": "dirichlet", "dirichlet_min": 5, "dirichlet_alpha": 0.3}
    partition = dealt_rows(BiasArguments(**told, scenario="1B2C"), 3, seed=1)
    clean = dealt_rows(BiasArguments(**told, scenario="3C"), 3, seed=1)
    assert (partition.label_field, list(partition.sources), len(partition.heldout)) == (
        "category",
        ["preference"],
        10,
    )
    for one, other in zip(partition.clients, clean.clients, strict=True):
        is_poisoned = one.biased_share == 1
        assert [row.response.split()[0] for row in one.rows] == ["bad" if is_poisoned else "good"] * len(one.rows)
        assert [row.instruction for row in one.rows] == [row.instruction for row in other.rows]
    assert sorted(client.biased_share for client in partition.clients) == [0, 0, 1]
    counts = [client["labels"] for client in described(partition)["clients"]]
    assert len({tuple(sorted(count.items())) for count in counts}) == 3
    instructions = [row.instruction for client in partition.clients for row in (*client.rows, *partition.heldout)]
    assert len({*instructions}) == sum(len(client.rows) for client in partition.clients) + 10


def test_the_host_s_own_rows_keep_their_order_and_texts():
    examples = [{"prompt": f"P{n}:", "chosen": f" c{n}", "rejected": f" r{n}", "extra": n} for n in range(3)]
    found = rows_of_host(iter(examples), "hub/set")
    assert found.rows[2] == Row("hub/set:2", "P2:", " c2", False, "hub/set", " r2")
    assert [row.id for row in found.rows] == ["hub/set:0", "hub/set:1", "hub/set:2"]
    assert found.sha256 != rows_of_host(examples[:2], "hub/set").sha256


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("wrong", [None, ["a", "b"]])
def test_a_set_of_the_host_that_is_no_preference_set_is_named(column, wrong):
    whole = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UserError, match=f"^Row 1 of hub/set has no text in the column '{column}'"):
        rows_of_host([whole, {**whole, column: wrong}], "hub/set")


def test_an_empty_set_of_the_host_is_refused():
    with pytest.raises(UserError, match=r"^The preference set hub/set holds no rows\.$"):
        rows_of_host([], "hub/set")
