"""FedAvgW, q-FedAvg and agnostic FL: numbers worked out by hand, or by a slow reference written here."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.aggregation.agnostic import Agnostic, onto_simplex
from fedbias_plugin.aggregation.base import ClientReports, Weighting
from fedbias_plugin.aggregation.fedavgw import FedAvgW, inverse_weights
from fedbias_plugin.aggregation.qfedavg import QFedAvg, q_factors
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import substitute, weighted_state
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord
from fedbias_plugin.tracking.weights import weight_summary
from fedbias_plugin.updates.checks import update_norm

HEAD, LORA = "base_model.model.score.weight", "base_model.model.q_proj.lora_A.weight"


def reports(rows, own=None, fed_alg="fedavg", seed=0, **more) -> ClientReports:
    """A round of clients with a LoRA tensor and a head; theta is not zero."""
    draws = torch.Generator().manual_seed(seed)
    theta = {name: torch.randn(3, 2, generator=draws) for name in (LORA, HEAD)}
    local = {c: {name: t + torch.randn(3, 2, generator=draws) for name, t in theta.items()} for c in rows}
    norms = {client: update_norm(theta, state) for client, state in local.items()}
    return ClientReports(fed_alg, rows, {}, theta, local, norms, own_scores=own or {}, **more)


def record(weighting: Weighting, rows) -> RoundRecord:
    clients = {c: ClientRecord(None, n, weight=weighting.weights[c]) for c, n in rows.items()}
    effective = weight_summary(weighting.weights, {}).effective_clients
    return RoundRecord(1, GlobalRecord(), clients, aggregation_mass=weighting.mass, effective_clients=effective)


def test_fedavgw_weighs_100_200_and_400_rows_by_4_2_and_1_of_7_and_has_2_333_effective_clients():
    rows = {0: 100, 1: 200, 2: 400}
    weighting = FedAvgW().weigh(reports(rows))
    assert weighting.weights == pytest.approx({0: 4 / 7, 1: 2 / 7, 2: 1 / 7}, rel=1e-12)
    assert weighting.factors == weighting.weights
    assert record(weighting, rows).effective_clients == pytest.approx(2.333, abs=5e-4)
    assert FedAvgW().warnings(record(weighting, rows), 0.5) == []


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_fedavgw_of_equal_rows_leaves_every_server_algorithm_s_own_result_untouched(fed_alg):
    assert FedAvgW().weigh(reports({0: 64, 3: 64, 4: 64}, fed_alg=fed_alg)).factors is None


def test_fedavgw_by_accuracy_has_a_floor_and_needs_every_client_s_accuracy():
    rule = FedAvgW(fedavgw_by="accuracy")
    assert rule.reads_own == {"client_accuracy"}
    assert FedAvgW().reads_own == frozenset()
    rows = {0: 10, 1: 10, 2: 10}
    weighting = rule.weigh(reports(rows, {"client_accuracy": {0: 0.5, 1: 0.0, 2: 0.1, 9: 1.0}}))
    assert weighting.weights == pytest.approx({0: 2 / 32, 1: 20 / 32, 2: 10 / 32})
    for known in ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5, 2: math.nan}):
        with pytest.raises(ValueError, match=r"client_accuracy .* client\(s\) \[2\]"):
            rule.weigh(reports(rows, {"client_accuracy": known}))


def test_fedavgw_of_lora_alone_averages_a_head_as_the_server_does():
    rows = {0: 100, 1: 300}
    round_ = reports(rows)
    weighting = FedAvgW(fedavgw_scope="lora").weigh(round_)
    assert weighting.weights == pytest.approx({0: 0.75, 1: 0.25})
    assert list(weighting.state) == list(round_.global_state)
    local = round_.local_states
    assert torch.allclose(weighting.state[LORA], 0.75 * local[0][LORA] + 0.25 * local[1][LORA], atol=1e-6)
    assert torch.allclose(weighting.state[HEAD], 0.25 * local[0][HEAD] + 0.75 * local[1][HEAD], atol=1e-6)
    assert FedAvgW(fedavgw_scope="lora").weigh(reports({0: 5, 1: 5})).factors is None


def test_fedavgw_says_when_a_tiny_client_rules():
    rows = {0: 2, 1: 100, 2: 100, 3: 100, 4: 100, 5: 100}
    weighting = FedAvgW().weigh(reports(rows))
    told = FedAvgW().warnings(record(weighting, rows), 0.5)
    assert [text.partition(":")[0] for text in told] == ["tiny clients rule"]
    assert "1.21 effective clients of 6; client 0, with 2 rows, has 91% of the weight" in told[0]


def slow_q_fedavg(theta, local, losses, q, lipschitz):
    """Algorithm 2 line by line, on flat vectors."""
    flat = {c: torch.cat([t.double().flatten() for t in state.values()]) for c, state in local.items()}
    w = torch.cat([t.double().flatten() for t in theta.values()])
    delta_w = {c: lipschitz * (w - flat[c]) for c in flat}
    delta = {c: losses[c] ** q * delta_w[c] for c in flat}
    h = {c: q * losses[c] ** (q - 1) * delta_w[c].square().sum() + lipschitz * losses[c] ** q for c in flat}
    return w - sum(delta.values()) / sum(h.values())


@pytest.mark.parametrize("q", [0.0, 0.1, 1.0, 5.0])
def test_q_fedavg_takes_the_step_of_algorithm_2(q):
    losses = {0: 0.3, 1: 2.0, 5: 1.1}
    round_ = reports({0: 7, 1: 90, 5: 20}, {"client_loss": losses}, learning_rates={0: 0.5, 1: 0.5, 5: 0.5})
    weighting = QFedAvg(qfedavg_q=q).weigh(round_)
    new = weighted_state(round_.global_state, round_.local_states, weighting.factors)
    expected = slow_q_fedavg(round_.global_state, round_.local_states, losses, q, 2.0)
    assert torch.allclose(torch.cat([t.flatten() for t in new.values()]).double(), expected, atol=1e-6)
    assert sum(weighting.weights.values()) == pytest.approx(1)
    assert weighting.mass == pytest.approx(1) if q == 0 else weighting.mass < 1
    if q == 5:
        assert weighting.weights[1] > 0.95


def test_q_fedavg_s_factors_are_flower_s():
    flower = pytest.importorskip("flwr.serverapp.strategy.qfedavg")
    losses, q, lipschitz = {0: 0.3, 1: 2.0}, 0.7, 5.0
    round_ = reports({0: 1, 1: 1}, {"client_loss": losses})
    theta = [tensor.numpy() for tensor in round_.global_state.values()]
    deltas, h = {}, 0.0
    for client, state in round_.local_states.items():
        local = [tensor.numpy().copy() for tensor in state.values()]
        deltas[client], one = flower.compute_delta_and_h(theta, local, q, lipschitz, losses[client])
        h += one
    factors = QFedAvg(qfedavg_q=q, qfedavg_lipschitz=lipschitz).weigh(round_).factors
    new = weighted_state(round_.global_state, round_.local_states, factors)
    for index, tensor in enumerate(new.values()):
        expected = theta[index] - (deltas[0][index] + deltas[1][index]) / h
        assert torch.allclose(tensor, torch.from_numpy(expected).float(), atol=1e-6)


def test_q_fedavg_is_the_uniform_mean_at_q_0_and_takes_l_as_it_is_given():
    round_ = reports({0: 64, 1: 64}, {"client_loss": {0: 1.0, 1: 3.0}})
    assert QFedAvg(qfedavg_q=0, qfedavg_lipschitz=3).weigh(round_).factors is None
    found = QFedAvg(qfedavg_lipschitz=4.0).weigh(round_)
    assert found.factors == q_factors({0: 1.0, 1: 3.0}, round_.update_norms, 1.0, 4.0)[1]
    with pytest.raises(UserError, match="--qfedavg_lipschitz"):
        QFedAvg().weigh(round_)


def test_q_fedavg_says_when_l_leaves_nothing_of_the_step_and_a_loss_of_zero_has_a_power():
    round_ = reports({0: 1, 1: 1}, {"client_loss": {0: 0.0, 1: 1.0}}, learning_rates={0: 1e-3, 1: 1e-3})
    rule = QFedAvg()
    weighting = rule.weigh(round_)
    assert rule.warnings(record(weighting, {0: 1, 1: 1}), 0.5)[-1].startswith("short step: q-FedAvg makes ")
    assert all(math.isfinite(g) for g in QFedAvg(qfedavg_q=0.5).weigh(round_).factors.values())


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6))
def test_the_projection_is_on_the_simplex_and_no_corner_or_centre_is_nearer(values):
    point = dict(enumerate(values))
    found = onto_simplex(point)
    assert min(found.values()) >= 0
    assert sum(found.values()) == pytest.approx(1)
    # Of a convex set it is the nearest point exactly where no other lies on the far side: <p - x, y - x> <= 0.
    corners = [{c: float(c == one) for c in point} for one in point]
    for other in corners:
        assert sum((point[c] - found[c]) * (other[c] - found[c]) for c in point) <= 1e-9


def test_agnostic_begins_uniform_follows_the_losses_and_loses_no_weight():
    rule = Agnostic(agnostic_step=0.5)
    round_ = reports({0: 9, 1: 9, 2: 9}, {"client_loss": {0: 1.0, 1: 1.6, 2: 0.1}})
    assert rule.weigh(round_).factors is None  # 1/3 each, FedAvg's own
    # 1/3 + (0.5, 0.8, 0.05) less their mean 0.45: (0.3833, 0.6833, -0.0667), which is beyond the simplex; of the first
    # two the threshold is (0.8333 + 1.1333 - 1) / 2 = 0.4833
    second = rule.weigh(round_)
    assert second.weights == pytest.approx({0: 0.35, 1: 0.65, 2: 0.0})
    assert second.factors == second.weights
    assert second.mass == 1
    equal = Agnostic()
    alike = reports({0: 9, 1: 9}, {"client_loss": {0: 2.0, 1: 2.0}})
    assert [equal.weigh(alike).weights for _ in range(3)][-1] == pytest.approx({0: 0.5, 1: 0.5})


def test_agnostic_goes_on_after_a_resume_and_shares_what_the_drawn_clients_had():
    whole, losses = Agnostic(), {0: 0.5, 1: 2.0, 2: 1.0, 3: 0.2}
    drawn = [(0, 1), (1, 2), (0, 3), (1, 3), (0, 2)]
    rounds = [reports(dict.fromkeys(pair, 5), {"client_loss": losses}) for pair in drawn]
    expected = [whole.weigh(one).weights for one in rounds]
    first, second = Agnostic(), Agnostic()
    begun = [first.weigh(one).weights for one in rounds[:3]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert begun + [second.weigh(one).weights for one in rounds[3:]] == expected
    assert sum(whole.shares.values()) == pytest.approx(4)
    assert expected[0] == {0: 0.5, 1: 0.5}
    assert expected[4][0] < 0.5


def test_agnostic_gives_clients_that_have_lost_everything_a_new_start_together():
    rule = Agnostic(shares={0: 0.0, 1: 0.0, 2: 3.0})
    found = rule.weigh(reports({0: 5, 1: 5}, {"client_loss": {0: 1.0, 1: 1.0}}))
    assert found.weights == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_the_weights_reach_every_server_algorithm_by_substitution(fed_alg):
    round_ = reports({0: 100, 1: 300}, fed_alg=fed_alg)
    theta, factors = round_.global_state, FedAvgW().weigh(round_).factors
    zero = {c: {name: torch.zeros_like(t) for name, t in theta.items()} for c in round_.local_states}
    deltas = zero if fed_alg == "scaffold" else None
    states = substitute(theta, round_.local_states, factors)
    mean = ServerOptimizer(fed_alg, num_clients=2).aggregate(0, theta, states, round_.sample_counts, deltas)
    one = weighted_state(theta, round_.local_states, factors)
    alone = ServerOptimizer(fed_alg, num_clients=2).aggregate(0, theta, {0: one}, {0: 1}, deltas and {0: zero[0]})
    assert all(torch.allclose(mean[name], alone[name], atol=1e-6) for name in theta)


def test_inverse_weights_of_one_client_are_one():
    assert inverse_weights({3: 17}) == {3: 1.0}
