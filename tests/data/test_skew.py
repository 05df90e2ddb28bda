"""Who holds what: rows dealt by label or by a column, the same on every machine, none twice and none lost."""

import itertools
import random

import pytest

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.base import Deal
from fedbias_plugin.data.dirichlet import Dirichlet, cumulative_floor, shares
from fedbias_plugin.data.partition import manifest, partition_hash
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError
from fedbias_plugin.registry import build


def source(labels, name="clean", *, biased=False):
    rows = [
        Row(f"{name}:{n}", f"text {n}", "x", biased, name, labels={"category": label} if label else {})
        for n, label in enumerate(labels)
    ]
    return RowSource(name, rows, (), f"hash of {name}", "file")


ROWS = source("a" * 300 + "b" * 500 + "c" * 200)


def deal(
    partitioner="dirichlet", *, rows=ROWS, clients=4, most=1000, seed=3, heldout=50, poisoned=(), biased=None, **flags
):
    asked = {"dirichlet_min": 40, "client_field": "category"} | flags
    made = build("partitioner", partitioner, BiasArguments(partitioner=partitioner, client_samples=most, **asked))
    return made.deal(Deal(rows, biased, [float(c in poisoned) for c in range(clients)], most, seed, heldout, "3C"))


@pytest.mark.parametrize(("alpha", "expected"), [(0.1, 0.55), (0.3, 0.325), (0.5, 0.25), (1.0, 0.1818)])
def test_shares_are_as_concentrated_as_the_distribution_says(alpha, expected):
    rng = random.Random(0)
    found = [sum(p * p for p in shares(alpha, 10, rng)) for _ in range(2000)]
    assert sum(found) / 2000 == pytest.approx(expected, abs=0.02)


def test_a_tiny_alpha_gives_one_client_all_and_no_nan():
    for seed in range(20):
        assert sum(shares(0.001, 10, random.Random(seed))) == pytest.approx(1.0)


def test_the_flwr_datasets_partitioner_deals_alike():
    partitioner = pytest.importorskip("flwr_datasets.partitioner", reason="flwr-datasets is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    found = []
    for seed in range(40):
        theirs = partitioner.DirichletPartitioner(10, "label", 0.5, 0, self_balancing=False, shuffle=True, seed=seed)
        theirs.dataset = datasets.Dataset.from_dict({"label": [label for label in "abcd" for _ in range(500)]})
        held = [theirs.load_partition(client)["label"] for client in range(10)]
        found += [sum((client.count(label) / 500) ** 2 for client in held) for label in "abcd"]
    rng = random.Random(1)
    ours = [sum((n / 500) ** 2 for n in cumulative_floor(500, shares(0.5, 10, rng))) for _ in range(160)]
    assert sum(found) / 160 == pytest.approx(sum(ours) / 160, abs=0.04)


@pytest.mark.parametrize(
    ("rows", "parts", "expected"),
    [(10, (0.55, 0.25, 0.2), [5, 3, 2]), (10, (0.1, 0.2, 0.7), [1, 2, 7]), (3, (0.3, 0.3, 0.4), [0, 1, 2])],
)
def test_whole_rows_by_cumulative_floor(rows, parts, expected):
    assert cumulative_floor(rows, parts) == expected


@pytest.mark.parametrize("partitioner", ["dirichlet", "by_field"])
def test_every_row_is_held_once_by_one_client_or_held_out(partitioner):
    result = deal(partitioner, clients=3)
    ids = [row.id for row in itertools.chain(result.heldout, *(client.rows for client in result.clients))]
    assert sorted(ids) == sorted(row.id for row in ROWS.rows)
    assert result.notes["cut_by_client_samples"] == 0
    assert partition_hash(result) == partition_hash(deal(partitioner, clients=3))
    assert partition_hash(result) != partition_hash(deal(partitioner, clients=3, seed=4))


def test_only_the_cap_loses_rows_and_it_takes_a_random_part_of_a_client_s():
    whole, cut = deal(), deal(most=150)
    for one, other in zip(whole.clients, cut.clients, strict=True):
        assert {row.id for row in other.rows} <= {row.id for row in one.rows}
        assert len(other.rows) == min(150, len(one.rows))
    assert cut.notes["cut_by_client_samples"] == sum(max(0, len(one.rows) - 150) for one in whole.clients)
    assert cut.heldout == whole.heldout


def test_shares_are_drawn_again_until_every_client_holds_enough_and_the_draws_are_told():
    result = deal(dirichlet_alpha=0.3, dirichlet_min=150)
    assert min(len(client.rows) for client in result.clients) >= 150
    assert result.notes["dirichlet_draws"] > 1
    with pytest.raises(UserError, match=r"in 1,000 draws .* the best draw's smallest client held \d+"):
        deal(dirichlet_alpha=0.01, dirichlet_min=237)
    with pytest.raises(UserError, match=r"4 clients .* need 1,000, .* leaves 950 .* largest that could fit is 237"):
        deal(dirichlet_min=250)
    with pytest.raises(UserError, match="--dirichlet_min 40 is more than --client_samples 30"):
        deal(most=30)


def test_the_manifest_counts_rows_by_label():
    from dataclasses import replace

    told = manifest(replace(deal("by_field", clients=3), label_field="category"))
    assert [client["client_value"] for client in told["clients"]] == ["a", "b", "c"]
    assert [list(client["labels"]) for client in told["clients"]] == [["a"], ["b"], ["c"]]
    assert sum(told["heldout"]["labels"].values()) == 50
    assert (told["label_field"], told["client_field"]) == ("category", "category")


def test_a_poisoned_client_holds_as_many_biased_rows_as_it_was_dealt_clean_ones():
    clean, poisoned = deal(), deal(poisoned=(1,), biased=source([""] * 900, "biased", biased=True))
    assert [len(client.rows) for client in clean.clients] == [len(client.rows) for client in poisoned.clients]
    assert all(row.biased for row in poisoned.clients[1].rows)
    assert clean.clients[0].rows == poisoned.clients[0].rows
    with pytest.raises(UserError, match="biased holds 5; give a smaller --client_samples"):
        deal(poisoned=(1,), biased=source([""] * 5, "biased", biased=True))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"partitioner": "by_field", "clients": 2}, r"has 3 values in clean.* give --num_clients 3 \(it is 2\)"),
        ({"partitioner": "by_field", "client_field": "who"}, r"--client_field who: row clean:\d+ has no .*: category"),
        ({"label_field": "kind"}, r"--label_field kind: row clean:\d+ has no value of it"),
        ({"heldout": 1000}, "--heldout_samples 1,000 takes all of the 1,000 rows"),
        ({"partitioner": "by_field", "client_field": None}, "needs --client_field COLUMN"),
    ],
)  # fmt: skip
def test_what_cannot_be_dealt_is_said(flags, message):
    with pytest.raises(UserError, match=message):
        deal(**flags)


def test_dirichlet_is_what_its_flags_say():
    assert (Dirichlet().dirichlet_alpha, Dirichlet().dirichlet_min, Dirichlet().label_field) == (0.5, 250, "category")


def test_dolly_is_dealt_by_its_categories_from_the_instruction_alone(real_data):
    flags = {"partitioner": "dirichlet", "dirichlet_alpha": 0.5, "dirichlet_min": 250, "client_samples": 1000}
    told = {"task": "classify", "scenario": "3C", "bias_benchmarks": "none", "clean_dataset": "dolly"}
    arguments = BiasArguments(data_dir=str(real_data), **told, **flags)
    partition = arguments.split.deal(arguments, 10, 2023)
    labels = {row.response for client in partition.clients for row in client.rows}
    assert len(labels) == 8
    assert all(250 <= len(client.rows) <= 1000 for client in partition.clients)
    assert sum(len(c.rows) for c in partition.clients) + 100 + partition.notes["cut_by_client_samples"] > 14_000
    assert not any("context" in row.labels for row in partition.heldout)
