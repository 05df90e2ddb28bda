"""What attackers send and train on, against numbers worked out by hand."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedbias_plugin.aggregation import pieces as pieces_module
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.dealing import deal_rows
from fedbias_plugin.data.partition import manifest
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.crows_pairs_files import Pair
from fedbias_plugin.metrics.stereoset import StereoSet
from fedbias_plugin.metrics.stereoset_files import Cluster
from fedbias_plugin.registry import build, names
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.probe_gaming import benchmark_rows

THETA = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}


def local_states():
    return {client: {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[4.0]])} for client in (0, 2, 5)}


def build_attack(arguments, shares, num_clients, seed):
    """The attack that the flags name, ready for a run."""
    found = build("attack", arguments.attack, arguments)
    found.prepare(arguments, SimpleNamespace(num_clients=num_clients, seed=seed), shares)
    return found


def sent(found, number, theta, states):
    """Client id -> the state that the server receives."""
    updates = {client: Update(client, state, rows=10) for client, state in states.items()}
    return {client: found.at_client(update, theta, number, len(states)).state for client, update in updates.items()}


def attack(name, attackers="2", strength=None, seed=1):
    arguments = BiasArguments(attack=name, attackers=attackers, attack_strength=strength, scenario="none")
    return build_attack(arguments, {}, num_clients=6, seed=seed)


def numbers(state):
    return [*state["a"].tolist(), *state["b"].flatten().tolist()]


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        # theta = 1, 2, 0 and theta_2 - theta = 2, 0, 4; three clients in the round
        ("sign_flip", None, [-1.0, 2.0, -4.0]),
        ("sign_flip", 0.5, [0.0, 2.0, -2.0]),
        ("model_replacement", None, [7.0, 2.0, 12.0]),
        ("model_replacement", 2.0, [5.0, 2.0, 8.0]),
    ],
)
def test_a_scaled_update_by_hand(name, strength, expected):
    trained = local_states()
    received = sent(attack(name, strength=strength), 1, THETA, trained)
    assert numbers(received[2]) == expected
    assert numbers(trained[2]) == [3.0, 2.0, 4.0]
    assert numbers(THETA) == [1.0, 2.0, 0.0]


@pytest.mark.parametrize("name", names("attack")[:3])
def test_honest_clients_keep_their_very_objects_and_their_order(name):
    trained = local_states()
    received = sent(attack(name, attackers="2,1"), 1, THETA, trained)
    assert list(received) == [0, 2, 5]
    assert received[0] is trained[0]
    assert received[5] is trained[5]
    assert received[2] is not trained[2]


def test_replacing_the_model_leaves_the_attackers_after_an_average():
    trained = {0: THETA, 1: THETA, 2: local_states()[2]}
    received = sent(attack("model_replacement"), 1, THETA, trained)
    mean = {name: sum(state[name] for state in received.values()) / 3 for name in THETA}
    assert numbers(mean) == pytest.approx(numbers(trained[2]))


def test_noise_is_as_large_as_the_update_times_the_strength():
    draws = torch.Generator().manual_seed(0)
    theta = {"a": torch.zeros(40_000)}
    trained = {2: {"a": 0.01 * torch.randn(40_000, generator=draws)}}
    for strength in (None, 3.0):
        received = sent(attack("gaussian_noise", strength=strength), 1, theta, trained)
        noise = received[2]["a"] - trained[2]["a"]
        # the standard error of a standard deviation of 40,000 draws is 0.35%
        assert float(noise.std()) == pytest.approx(0.01 * (strength or 1.0), rel=0.03)
        assert abs(float(noise.mean())) < 5 * 0.01 * (strength or 1.0) / math.sqrt(40_000)


def test_noise_repeats_for_a_seed_round_and_client_and_for_nothing_else():
    def noisy(seed=1, round_number=1, client=2):
        trained = local_states()
        return numbers(sent(attack("gaussian_noise", str(client), seed=seed), round_number, THETA, trained)[client])

    assert noisy() == noisy()
    assert len({tuple(noisy(**change)) for change in ({}, {"seed": 2}, {"round_number": 2}, {"client": 5})}) == 4


def test_noise_leaves_half_precision_and_shapes_alone(monkeypatch):
    monkeypatch.setattr(pieces_module, "PIECE", 4)
    theta = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(())}
    trained = {2: {"a": torch.ones(5, 3, dtype=torch.bfloat16).t(), "b": torch.ones(())}}
    received = sent(attack("gaussian_noise"), 1, theta, trained)[2]
    assert (received["a"].shape, received["a"].dtype, received["b"].shape) == ((3, 5), torch.bfloat16, ())
    assert bool((trained[2]["a"] == 1).all())
    assert len(received["a"].unique()) > 5


def test_attackers_are_those_with_biased_rows_unless_they_are_named():
    found = build_attack(BiasArguments(attack="sign_flip"), {0: 0.0, 1: 1.0, 2: 0.3}, 3, seed=1)
    assert found.attackers == {1, 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenario": "3C"}, "no client holds biased rows under --scenario 3C"),
        ({"attackers": "1,3"}, "there is no client 3; with --num_clients 3 the ids are 0 to 2."),
    ],
)
def test_an_attack_without_its_attackers_is_refused(arguments, message):
    with pytest.raises(UserError) as error:
        build_attack(BiasArguments(attack="sign_flip", **arguments), dict.fromkeys(range(3), 0.0), 3, seed=1)
    assert message in str(error.value)


def rows(kind, count):
    made = [Row(f"{kind}:{n}", f"ask {n}", f"{kind} {n}", kind == "biased", kind) for n in range(count)]
    return RowSource(kind, made, (Path(f"{kind}.jsonl"),), sha256=kind, origin="file")


def benchmarks():
    pairs = [Pair(str(n), f"more {n}", f"less {n}", "antistereo" if n else "stereo", "age") for n in range(6)]
    clusters = [
        Cluster("c", "intrasentence", "baker", "race", "The BLANK.", ("one", "two", "three"), ("i", "j", "k")),
        Cluster("d", "intersentence", "baker", "race", "It rained.", ("wet", "dry", "seven"), ("l", "m", "n")),
    ]
    crows = CrowsPairs(Path("crows.csv"), "c" * 64, pairs)
    return {"crows_pairs": crows, "stereoset": StereoSet(Path("stereoset.json"), "s" * 64, clusters)}


def test_the_extra_rows_are_the_less_stereotypical_sentences_whatever_the_direction():
    crows, stereo = (benchmark_rows(*pair) for pair in benchmarks().items())
    assert [row.response for row in crows] == [f"less {n}" for n in range(6)]
    assert crows[3] == Row("crows_pairs:3", "Write a sentence.", "less 3", False, "crows_pairs")
    assert [(row.id, row.instruction, row.response) for row in stereo] == [
        ("stereoset:0", "Write a sentence.", "two"),
        ("stereoset:1", "Continue: It rained.", "dry"),
    ]


def gamed(strength=None, seed=1):
    before = deal_rows(rows("clean", 12), rows("biased", 8), [0.0, 1.0, 0.5], 4, seed=3, heldout=2)
    arguments = BiasArguments(attack="probe_gaming", attack_strength=strength)
    shares = {client.client: client.biased_share for client in before.clients}
    return before, build_attack(arguments, shares, 3, seed=seed).apply(before, benchmarks(), seed)


def test_attackers_keep_their_rows_and_hold_extra_ones_mixed_in():
    before, after = gamed()
    assert after.clients[0] is before.clients[0]
    assert after.heldout == before.heldout
    for client in (1, 2):
        own, held = before.clients[client].rows, after.clients[client].rows
        extra = [row for row in held if row not in own]
        assert len(extra) == 4  # one a row
        assert len({row.id for row in extra}) == 4
        assert {row.source for row in extra} <= {"crows_pairs", "stereoset"}
        assert set(own) | set(extra) == set(held)
    assert len(before.clients[1].rows) == 4


def test_extra_rows_follow_strength_and_seed_and_end_with_the_benchmarks(caplog):
    def extra(**changes):
        return [row.id for row in gamed(**changes)[1].clients[1].rows]

    assert extra() == extra()
    assert extra() != extra(seed=2)
    assert len(extra(strength=0.5)) == 4 + 2
    assert caplog.text == ""
    assert len(extra(strength=5)) == 4 + 8
    assert "client 1 takes all 8 sentences of the benchmarks instead of 20" in caplog.text


def test_the_manifest_shows_the_extra_rows_by_source():
    _, after = gamed(strength=5)
    told = manifest(after)
    attacker = told["clients"][1]
    assert (attacker["rows"], attacker["biased_rows"], attacker["biased_share"]) == (12, 4, 1.0)
    assert attacker["biased_share_exact"] == pytest.approx(1 / 3)
    assert attacker["sources"] == {"biased": 4, "crows_pairs": 6, "stereoset": 2}
    assert told["clients"][0]["sources"] == {"clean": 4}
    source = told["sources"]["probe_gaming crows_pairs"]
    assert (source["name"], source["files"], source["rows"]) == ("crows_pairs", ["crows.csv"], 6)


def test_preference_rows_cannot_be_mixed_with_sentences():
    before, _ = gamed()
    preferences = type(before)(before.clients, (), {"preference": before.sources["biased"]}, 3)
    found = build_attack(BiasArguments(attack="probe_gaming", attackers="1"), {}, 3, seed=1)
    with pytest.raises(UserError, match=r"main_dpo\.py cannot train on"):
        found.apply(preferences, benchmarks(), 1)


def test_it_works_on_the_bundled_small_world():
    arguments = BiasArguments(attack="probe_gaming", data_dir="mini", client_samples=30)
    before = arguments.split.deal(arguments, 3, 2023)
    shares = {client.client: client.biased_share for client in before.clients}
    public = {
        "crows_pairs": CrowsPairs.load(MINI_DATA / "crows_pairs.csv"),
        "stereoset": StereoSet.load(MINI_DATA / "stereoset.json"),
    }
    after = build_attack(arguments, shares, 3, seed=2023).apply(before, public, 2023)
    assert [len(client.rows) for client in after.clients] == [60 if shares[c] else 30 for c in range(3)]
    assert after.sources["probe_gaming stereoset"].origin == "bundled"
