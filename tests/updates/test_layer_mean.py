"""Each layer is averaged over the clients that trained it, by hand."""

import pytest
import torch

from fedbias_plugin.aggregation.base import ClientReports, Weighting
from fedbias_plugin.aggregation.plain import Plain
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer, host_factors
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.layer_mean import LayerMean, mean_by_layer, names_of_last

NAMES = [f"model.layers.{layer}.w" for layer in (3, 4, 5)]
THETA = {name: torch.full((2,), 0.1) for name in NAMES}


def moved(**deltas):
    """Theta, where the layer ``l5`` has moved by its value."""
    return {name: part + deltas.get(f"l{name.split('.')[2]}", 0.0) for name, part in THETA.items()}


def in_a_round(updates, factors=None, theta=THETA):
    """The weighting after the stage, of updates as their clients send them."""
    stage = LayerMean()
    sent = {client: stage.at_client(update, theta, 1, len(updates)) for client, update in updates.items()}
    stage.at_server(sent, theta, 1)
    reports = ClientReports.of(sent, theta, "fedavg")
    return sent, stage.on_weights(Weighting({}, factors, 1.0), Plain(), reports, 1)


def update(client, layers, rows, **deltas):
    return Update(client, moved(**deltas), rows=rows, extra={"adapter_layers": float(layers)})


def test_two_clients_train_a_layer_and_one_another():
    theta = {"h.4.w": torch.zeros(1), "h.5.w": torch.zeros(1), "h.3.w": torch.ones(1)}
    local = {
        0: {**theta, "h.5.w": torch.tensor([4.0])},
        1: theta,
        2: {**theta, "h.4.w": torch.tensor([2.0])},
    }
    factors = host_factors("fedavg", {0: 100, 1: 300, 2: 50})
    new = mean_by_layer(theta, local, factors, {0: ["h.5.w"], 1: ["h.5.w"], 2: ["h.4.w"]})
    assert (new["h.5.w"].item(), new["h.4.w"].item()) == (pytest.approx(1.0), pytest.approx(2.0))
    assert new["h.3.w"].equal(theta["h.3.w"])
    assert list(new) == list(theta)


def test_a_round_of_mixed_devices_renormalises_each_layer_and_leaves_what_nobody_trained():
    sent, weighting = in_a_round({0: update(0, 1, 100, l5=4.0), 1: update(1, 2, 300, l5=0.0, l4=2.0)})
    assert weighting.factors is None
    assert weighting.alone
    state = {name.split(".")[2]: part for name, part in weighting.state.items()}
    torch.testing.assert_close(state["5"], THETA[NAMES[2]] + 1.0)  # 100 of 400 rows
    torch.testing.assert_close(state["4"], THETA[NAMES[1]] + 2.0)  # one client: the whole of its step
    assert state["3"].equal(THETA[NAMES[0]])
    # as the server takes it: one state of one row, whose bits no mean rounds
    new = ServerOptimizer("fedavg", num_clients=2).aggregate(0, THETA, {0: weighting.state}, {0: 1})
    assert all(part.equal(weighting.state[name]) for name, part in new.items())
    assert [one.payload for one in sent.values()] == [{"adapter": 8}, {"adapter": 16}]


def test_the_weights_of_any_rule_are_shared_within_a_layer_and_the_mass_stays():
    updates = {0: update(0, 2, 1, l5=1.0, l4=1.0), 1: update(1, 1, 1, l5=3.0), 2: update(2, 2, 1, l4=5.0)}
    state = in_a_round(updates, {0: 0.1, 1: 0.2, 2: 0.1})[1].state  # mass .4
    torch.testing.assert_close(state[NAMES[2]], THETA[NAMES[2]] + 0.1 + 0.6)  # all trained it
    torch.testing.assert_close(state[NAMES[1]], THETA[NAMES[1]] + 0.4 * (1 + 5) / 2)
    nobody = in_a_round({0: update(0, 2, 1, l4=9.0), 1: update(1, 1, 1, l5=3.0)}, {0: 0.0, 1: 1.0})[1].state
    assert nobody[NAMES[1]].equal(THETA[NAMES[1]])  # whose only client has no weight


def test_equal_adapters_have_the_ordinary_mean_to_the_bit():
    weighting = in_a_round({0: update(0, 3, 100, l5=4.0), 1: update(1, 3, 300, l3=0.3)})[1]
    assert weighting == Weighting({}, None, 1.0)  # the host's own average of what came in
    nothing = in_a_round({0: update(0, 1, 1), 1: update(1, 2, 1)}, {0: 0.0, 1: 0.0})[1]
    assert nothing.state is None
    assert nothing.factors == {0: 0.0, 1: 0.0}


def test_of_layers_that_a_client_did_not_train_the_server_has_theta_whatever_was_sent():
    forged = update(0, 1, 10, l5=1.0, l4=7.0, l3=float("nan"))
    sent = in_a_round({0: forged, 1: update(1, 3, 10)})[0][0]
    assert sent.state[NAMES[0]].equal(THETA[NAMES[0]])
    assert sent.state[NAMES[1]].equal(THETA[NAMES[1]])
    assert sent.state[NAMES[2]] is forged.state[NAMES[2]]
    torn = Update(0, {"other": torch.zeros(1)}, 10, extra={"adapter_layers": 1.0})
    assert LayerMean().at_client(torn, THETA, 1, 2) is torn  # for the checks


def test_the_stage_is_in_runs_with_a_choice_of_adapters():
    flags = {"trainable": "offsite", "client_memory_mb": "9"}
    assert LayerMean().is_for(BiasArguments(**flags, ot_adapter_choices="1,2"))
    assert not LayerMean().is_for(BiasArguments(**flags))
    assert not LayerMean().is_for(BiasArguments())
    assert names_of_last({"model.layers.9.w": 0, "model.layers.10.w": 0}, 1) == {"model.layers.10.w"}
