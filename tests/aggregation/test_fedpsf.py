"""FedPSF's weights, by hand, and where they are those of FedAvg."""

import math

import numpy as np
import pytest
import torch

from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.fedpsf import (
    FedPsf,
    abm_weights,
    cosines,
    dwm_weights,
    inner_products,
    spread,
)
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.errors import UserError

ROWS = {0: 100, 1: 400, 2: 900}
THETA = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([[0.5]])}


def reports_of(deltas, losses=None, rows=ROWS, before=2.0, fed_alg="fedavg"):
    """What the server knows: updates by client, and the held-out losses of the clients and of the global model."""
    states = {
        client: {"a": THETA["a"] + torch.tensor(delta[:2]), "b": THETA["b"] + delta[2]}
        for client, delta in deltas.items()
    }
    measured = {client: {"heldout_loss": {"loss": loss}} for client, loss in (losses or {}).items()}
    return ClientReports(
        *(fed_alg, {client: rows[client] for client in deltas}, {}, THETA, states),
        metrics=measured,
        of_global={"heldout_loss": {"loss": before}} if measured else {},
    )


def test_dwm_is_as_worked_out_by_hand():
    # u = 10 x 1 x 2, 20 x 2 x 1, 30 x 1.5 x 1 = 20, 40, 45
    found = dwm_weights([100, 400, 900], [0, 1, 0.5], [1, 0, 0], 0.5, 1, 1)
    assert found == pytest.approx([4 / 21, 8 / 21, 9 / 21], abs=1e-12)
    against = dwm_weights([1, 1], [0, 0], [0, 1], 0.5, 1, -0.5)
    assert against == pytest.approx([2 / 3, 1 / 3], abs=1e-12)


def test_abm_is_as_worked_out_by_hand():
    agreement = cosines(np.eye(2), [0.75, 0.25])
    assert agreement == pytest.approx([0.9487, 0.3162], abs=5e-5)
    assert abm_weights([0.75, 0.25], agreement, 1.0, 1.0) == pytest.approx([0.6530, 0.3470], abs=5e-5)
    assert abm_weights([0.75, 0.25], agreement, 1.0, 0.5) == pytest.approx([0.7015, 0.2985], abs=5e-5)


def test_a_mean_or_an_update_that_is_zero_has_cosine_0():
    assert cosines(np.array([[1.0, -1.0], [-1.0, 1.0]]), [0.5, 0.5]) == [0.0, 0.0]
    third = np.array([[1.0, -0.5, -0.5], [-0.5, 1.0, -0.5], [-0.5, -0.5, 1.0]])  # at 120 degrees: zero but for rounding
    assert cosines(third, [1 / 3] * 3) == [0.0, 0.0, 0.0]
    assert cosines(np.zeros((2, 2)), [0.5, 0.5]) == [0.0, 0.0]
    assert cosines(np.array([[4.0, 0.0], [0.0, 0.0]]), [0.5, 0.5]) == [1.0, 0.0]


def test_values_of_a_round_are_spread_to_0_and_1_and_equal_ones_are_0():
    assert spread([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert spread([0.3, 0.1 + 0.2]) == [0.0, 0.0]
    assert spread([7.0]) == [0.0]


def test_the_rule_does_both_with_losses_and_directions_of_the_round():
    deltas = {0: [3.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0], 2: [0.0, 0.0, 2.0]}
    weighting = FedPsf().weigh(reports_of(deltas, {0: 2.5, 1: 1.0, 2: 1.5}))
    # Gains max(0, (2 - L)/2): 0, .5, .25, spread to 0, 1, .5. The mean is (1, 1/3, 2/3), as long as sqrt(14)/3.
    apart = [1 - one / math.sqrt(14) for one in (3, 1, 2)]
    d = [0.0, 1.0, 0.5]
    u = [10.0 * 1 * (1 + d[0]), 20 * 2 * (1 + d[1]), 30 * 1.5 * (1 + d[2])]
    w = [one / sum(u) for one in u]
    q = [3 * w[0], w[1], 2 * w[2]]
    agreement = [one / math.sqrt(sum(x * x for x in q)) for one in q]
    raised = [math.exp(one) for one in agreement]
    expected = [0.5 * one + 0.5 * two / sum(raised) for one, two in zip(w, raised, strict=True)]
    assert list(weighting.weights.values()) == pytest.approx(expected, abs=1e-6)
    assert weighting.factors == weighting.weights
    assert weighting.mass == pytest.approx(1.0, abs=1e-12)
    assert [one["dwm_disparity"] for one in weighting.extra.values()] == pytest.approx(apart, abs=1e-6)
    assert [one["dwm_gain"] for one in weighting.extra.values()] == pytest.approx([0.0, 0.5, 0.25])
    assert [one["abm_cosine"] for one in weighting.extra.values()] == pytest.approx(agreement, abs=1e-6)


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedavgm"])
def test_with_gamma_1_and_the_others_0_it_is_the_plain_algorithm(fed_alg):
    draws = torch.Generator().manual_seed(1)
    deltas = {client: torch.randn(3, generator=draws).tolist() for client in ROWS}
    reports = reports_of(deltas, fed_alg=fed_alg)
    rule = FedPsf(dwm_gamma=1.0, dwm_beta=0.0, dwm_kappa=0.0, abm_eta=0.0)
    assert rule.compares == ()  # nobody is measured for a beta of 0
    state = weighted_state(THETA, reports.local_states, rule.weigh(reports).factors)
    plain = ServerOptimizer(fed_alg, num_clients=3).aggregate(0, THETA, reports.local_states, ROWS)
    ours = ServerOptimizer(fed_alg, num_clients=3).aggregate(0, THETA, dict.fromkeys(ROWS, state), ROWS)
    for name in THETA:
        torch.testing.assert_close(ours[name], plain[name], atol=1e-7, rtol=1e-6)


def test_a_module_that_is_off_leaves_the_weights_to_the_host():
    deltas = {0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0]}
    alone = FedPsf(fedpsf_modules="psm").weigh(reports_of(deltas))
    assert (alone.factors, alone.weights) == (None, {0: 0.2, 1: 0.8})
    rows = {0: 300, 1: 100}
    only = FedPsf(fedpsf_modules="abm").weigh(reports_of(deltas, rows=rows))
    assert list(only.weights.values()) == pytest.approx([0.7015, 0.2985], abs=5e-5)
    assert FedPsf(fedpsf_modules="abm").compares == ()
    assert FedPsf().compares == ("heldout_loss", "heldout_accuracy")
    with pytest.raises(UserError, match=r"held-out loss of client 0 .* is not measured"):
        FedPsf().weigh(reports_of(deltas))


def test_inner_products_are_those_of_the_whole_updates_in_half_precision_too():
    theta = {"a": torch.ones(700, 1000), "b": torch.zeros(3, dtype=torch.bfloat16)}
    states = {
        client: {"a": theta["a"] + client, "b": torch.full((3,), 2.0 * client, dtype=torch.bfloat16)}
        for client in (1, 2)
    }
    base = 700_000 + 3 * 4
    np.testing.assert_allclose(inner_products(theta, states), [[base, 2 * base], [2 * base, 4 * base]])
    with pytest.raises(ValueError, match=r"client 2 .* b is missing"):
        inner_products(theta, {1: states[1], 2: {"a": theta["a"]}})
