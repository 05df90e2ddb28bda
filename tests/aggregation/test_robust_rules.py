"""Median, trimmed mean, Krum, Multi-Krum and norm clipping, against arrays worked out by hand."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.aggregation import pieces as pieces_module
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.coordinates import trimmed_mean_state
from fedbias_plugin.aggregation.krum import Krum, MultiKrum, squared_distances
from fedbias_plugin.aggregation.median import Median
from fedbias_plugin.aggregation.norm_clip import NormClip
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import substitute
from fedbias_plugin.aggregation.trimmed_mean import TrimmedMean
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.registry import build
from fedbias_plugin.updates.checks import update_norm

ROBUST = ["median", "trimmed_mean", "krum", "multi_krum", "norm_clip"]


def made(**flags):
    """The rule that these flags name."""
    arguments = BiasArguments(**flags)
    return build("rule", arguments.aggregation, arguments)


def reports(states, counts=None, fed_alg="fedavg"):
    """A round of clients whose only tensor ``a`` is given; theta is zero."""
    local = {client: {"a": torch.tensor(values, dtype=torch.float32)} for client, values in states.items()}
    theta = {"a": torch.zeros_like(next(iter(local.values()))["a"])}
    norms = {client: update_norm(theta, state) for client, state in local.items()}
    return ClientReports(fed_alg, counts or dict.fromkeys(local, 1), {}, theta, local, norms)


def test_the_median_of_three_and_of_four_clients_by_hand():
    three = {0: [1.0, 9.0], 1: [5.0, -2.0], 4: [2.0, 3.0]}
    weighting = Median().weigh(reports(three, {0: 1000, 1: 1, 4: 1}))
    assert weighting.state["a"].tolist() == [2.0, 3.0]
    assert (weighting.weights, weighting.factors, weighting.mass) == ({}, None, None)
    four = {**three, 5: [100.0, 100.0]}
    assert Median().weigh(reports(four)).state["a"].tolist() == [3.5, 6.0]


def test_the_trimmed_mean_by_hand():
    # a: 1, 2, 6, 7, 100 without 1 and 100 -> 5;  b: -9, 0, 1, 2, 3 without -9 and 3 -> 1
    states = {0: [7.0, 0.0], 1: [2.0, 1.0], 2: [100.0, 2.0], 3: [1.0, -9.0], 4: [6.0, 3.0]}
    weighting = TrimmedMean(1).weigh(reports(states, {0: 1, 1: 1, 2: 1, 3: 1, 4: 99}))
    assert weighting.state["a"].tolist() == [5.0, 1.0]
    assert TrimmedMean(0).weigh(reports(states)).state["a"].tolist() == pytest.approx([23.2, -0.6])


@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_trimmed_mean_is_that_of_numpys_sort(clients, trim, seed):
    trim = min(trim, (clients - 1) // 2)
    values = np.random.default_rng(seed).normal(size=(clients, 5)).round(1).astype(np.float32)
    local = {client: {"a": torch.from_numpy(row.copy())} for client, row in enumerate(values)}
    found = trimmed_mean_state({"a": torch.zeros(5)}, local, trim)["a"]
    expected = np.sort(values.astype(np.float64), axis=0)[trim : clients - trim].mean(axis=0)
    assert np.allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert all(np.array_equal(local[client]["a"].numpy(), row) for client, row in enumerate(values))


def test_equal_states_are_given_back_to_the_bit():
    value = torch.tensor([0.43182677])
    assert (value + value + value) / 3 != value  # float32 would lose it
    states = {client: value.tolist() for client in range(3)}
    assert torch.equal(TrimmedMean(0).weigh(reports(states)).state["a"], value)


def test_bfloat16_is_averaged_in_more_digits_and_returned_as_bfloat16():
    local = {client: {"a": torch.tensor([value], dtype=torch.bfloat16)} for client, value in enumerate([256, 1, 1, 1])}
    found = trimmed_mean_state({"a": torch.zeros(1, dtype=torch.bfloat16)}, local, 0)["a"]
    # 259 / 4 = 64.75 is near 64.5 and 65; a bfloat16 sum stays at 256 and gives 64
    assert found.dtype is torch.bfloat16
    assert float(found) in (64.5, 65.0)


def test_pieces_and_shapes_change_nothing(monkeypatch):
    draws = torch.Generator().manual_seed(0)
    shapes = {"matrix": (7, 5), "scalar": (), "empty": (0, 4)}
    local = {c: {name: torch.randn(shape, generator=draws) for name, shape in shapes.items()} for c in range(4)}
    local[3]["matrix"] = torch.randn(5, 7, generator=draws).t()
    theta = {name: torch.zeros(shape) for name, shape in shapes.items()}
    whole, distances = trimmed_mean_state(theta, local, 1), squared_distances(theta, local)
    monkeypatch.setattr(pieces_module, "PIECE", 8)
    parts = trimmed_mean_state(theta, local, 1)
    assert all(torch.equal(whole[name], parts[name]) for name in shapes)
    assert torch.allclose(squared_distances(theta, local), distances, rtol=1e-14)
    by_hand = sum(float((local[1][name].double() - local[3][name].double()).square().sum()) for name in shapes)
    assert float(distances[3, 1]) == pytest.approx(by_hand, rel=1e-12)


# On a line at 0, 1, 3, 7 and 20. With f = 1, C - f - 2 = 2 neighbours count:
# 0: 1 + 9 = 10;  1: 1 + 4 = 5;  3: 4 + 9 = 13;  7: 16 + 36 = 52;  20: 169 + 289 = 458
LINE = {0: [7.0], 2: [0.0], 3: [20.0], 5: [1.0], 6: [3.0]}


def test_krum_takes_the_client_with_the_closest_neighbours():
    weighting = Krum(1).weigh(reports(LINE, {0: 9, 2: 9, 3: 9, 5: 1, 6: 9}))
    assert weighting.weights == {0: 0.0, 2: 0.0, 3: 0.0, 5: 1.0, 6: 0.0}
    assert (weighting.factors, weighting.mass, weighting.state) == (weighting.weights, 1.0, None)


def test_multi_krum_averages_all_but_f_without_sample_counts():
    round_ = reports(LINE, {0: 9, 2: 1, 3: 9, 5: 1, 6: 1})
    weighting = MultiKrum(1).weigh(round_)
    assert weighting.weights == {0: 0.25, 2: 0.25, 3: 0.0, 5: 0.25, 6: 0.25}
    moved = substitute(round_.global_state, round_.local_states, weighting.factors)
    assert moved[0]["a"].tolist() == [(7 + 0 + 1 + 3) / 4]


def test_equal_scores_go_to_the_lowest_client_id():
    # both pairs are 1 apart; with f = 1 of four one neighbour counts, so all four scores are 1
    weights = Krum(1).weigh(reports({7: [0.0], 3: [1.0], 9: [10.0], 4: [11.0]})).weights
    assert weights == {7: 0.0, 3: 1.0, 9: 0.0, 4: 0.0}


def test_close_clients_far_from_zero_are_told_apart():
    # squares of 1e4 in float32 leave no digit of differences of 1e-3
    states = {0: [1e4], 1: [1e4 + 2**-9], 2: [1e4 + 2**-9]}
    assert Krum(1).weigh(reports(states)).weights == {0: 0.0, 1: 1.0, 2: 0.0}


def test_an_infinite_update_that_krum_leaves_out_does_not_reach_the_model():
    round_ = reports({0: [1.0], 1: [1.0], 2: [float("inf")]})
    weighting = Krum(1).weigh(round_)
    assert weighting.weights == {0: 1.0, 1: 0.0, 2: 0.0}
    moved = substitute(round_.global_state, round_.local_states, weighting.factors)
    assert moved[2]["a"].tolist() == [1.0]


def test_norm_clipping_by_hand():
    # norms 5, 1 and 10, c = 5: factors n/n x (1, 1, 1/2) = 0.25, 0.25, 0.25; mass 0.75
    states = {0: [3.0, 4.0], 1: [0.0, 1.0], 2: [6.0, 8.0]}
    weighting = NormClip(5.0).weigh(reports(states, {0: 1, 1: 1, 2: 2}))
    assert weighting.factors == pytest.approx({0: 0.25, 1: 0.25, 2: 0.25})
    assert weighting.mass == pytest.approx(0.75)
    assert weighting.weights == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})


def test_without_a_clip_norm_it_is_the_median_of_the_rounds_norms():
    states = {0: [3.0, 4.0], 1: [0.0, 1.0], 2: [6.0, 8.0]}
    weighting = NormClip(None).weigh(reports(states, fed_alg="fedadam"))
    assert weighting.factors == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 6})


def test_a_round_without_a_long_update_is_the_hosts_own():
    weighting = NormClip(10.0).weigh(reports({0: [3.0], 1: [10.0]}, {0: 1, 1: 3}))
    assert (weighting.weights, weighting.factors, weighting.mass) == ({0: 0.25, 1: 0.75}, None, 1.0)
    still = NormClip(None).weigh(reports({0: [0.0], 1: [0.0]}))
    assert still.factors is None


def test_norms_of_zero_in_the_majority_clip_the_others_to_nothing():
    weighting = NormClip(None).weigh(reports({0: [0.0], 1: [0.0], 2: [5.0]}))
    assert weighting.factors == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 0.0})


def test_a_client_without_a_norm_is_named():
    round_ = reports({0: [3.0], 1: [4.0]})
    round_.update_norms.pop(1)
    with pytest.raises(ValueError, match=r"no update norm for client\(s\) \[1\]"):
        NormClip(1.0).weigh(round_)


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
@pytest.mark.parametrize("aggregation", ROBUST)
def test_a_round_with_one_client_moves_to_it_whatever_the_algorithm_averages(aggregation, fed_alg):
    round_ = reports({4: [2.0, -1.0]}, {4: 10}, fed_alg)
    weighting = made(aggregation=aggregation).weigh(round_)
    handed = round_.local_states
    if weighting.state is not None:
        handed = dict.fromkeys(handed, weighting.state)
    elif weighting.factors is not None:
        handed = substitute(round_.global_state, handed, weighting.factors)
    server = [ServerOptimizer(fed_alg, num_clients=3) for _ in range(2)]
    found, alone = (
        one.aggregate(0, round_.global_state, states, round_.sample_counts, {4: round_.local_states[4]})
        for one, states in zip(server, (handed, round_.local_states), strict=True)
    )
    assert torch.equal(found["a"], alone["a"])


def test_the_same_state_for_every_client_survives_an_average_by_samples():
    round_ = reports({0: [1.0], 1: [5.0], 2: [2.0]}, {0: 1, 1: 97, 2: 2})
    handed = dict.fromkeys(round_.local_states, Median().weigh(round_).state)
    server = ServerOptimizer("fedavg", num_clients=3)
    assert server.aggregate(0, round_.global_state, handed, round_.sample_counts)["a"].tolist() == pytest.approx([2.0])


@pytest.mark.parametrize(
    ("aggregation", "byzantine", "clients", "message"),
    [
        ("trimmed_mean", 1, 2, "leaves out the 1 smallest and largest of 2 client(s) a round"),
        ("trimmed_mean", 3, 6, "give --byzantine_clients 2, or have 7 clients a round or more"),
        ("krum", 3, 3, "give --byzantine_clients 2 at most, or have 4 clients a round or more"),
        ("multi_krum", 1, 1, "--aggregation multi_krum with --byzantine_clients 1 takes all of the 1 client(s)"),
    ],
)
def test_too_many_attackers_for_a_round_are_refused_at_the_start(aggregation, byzantine, clients, message):
    rule = made(aggregation=aggregation, byzantine_clients=byzantine)
    with pytest.raises(UserError) as error:
        rule.check(clients)
    assert message in str(error.value)


def test_krum_below_the_bound_of_its_proof_is_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "fedbias_plugin"):
        Krum(1).check(5)
        assert caplog.text == ""
        MultiKrum(1).check(4)
    assert "multi_krum is proved to withstand 1 attacker(s) with at least 5 clients a round" in caplog.text


@pytest.mark.parametrize("aggregation", ["host", "bama", "median", "norm_clip"])
def test_rules_without_f_accept_any_round(aggregation):
    made(aggregation=aggregation, byzantine_clients=9).check(1)


def test_a_round_that_lost_clients_lowers_f_and_says_so(caplog):
    states = {0: [1.0], 1: [2.0], 2: [9.0]}
    with caplog.at_level(logging.WARNING, "fedbias_plugin"):
        assert TrimmedMean(2).weigh(reports(states)).state["a"].tolist() == [2.0]
        assert Krum(4).weigh(reports(states)).weights == {0: 1.0, 1: 0.0, 2: 0.0}
    assert "3 client(s) in this round; leaving out 1 instead of 2" in caplog.text
    assert "taking 2 of them for attackers instead of 4" in caplog.text


@pytest.mark.parametrize("aggregation", ["median", "trimmed_mean", "krum", "multi_krum"])
def test_a_state_that_does_not_fit_is_named_by_client_and_tensor(aggregation):
    round_ = reports({0: [1.0], 1: [2.0], 2: [3.0]})
    del round_.local_states[1]["a"]
    with pytest.raises(ValueError, match="client 1 cannot be aggregated: a is missing"):
        made(aggregation=aggregation).weigh(round_)
