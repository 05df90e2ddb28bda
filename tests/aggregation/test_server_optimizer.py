"""Every server algorithm against numbers worked out by hand from its formula."""

import math

import pytest
import torch

from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer, host_factors
from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import ALGORITHMS, check_fed_alg
from fedbias_plugin.registry import load

# tau = 1, eta = beta1 = 1/2, beta2 = 3/4 make the hand computations short.
HYPER = {"fedopt_tau": 1.0, "fedopt_eta": 0.5, "fedopt_beta1": 0.5, "fedopt_beta2": 0.75}
COUNTS = {0: 1, 1: 3}


def one(value, dtype=torch.float32):
    return {"w": torch.tensor([value], dtype=dtype)}


def server(fed_alg, **options):
    num_clients = options.pop("num_clients", 2)
    return ServerOptimizer(fed_alg, {**HYPER, **options}, num_clients=num_clients)


def two_rounds(optimizer):
    """Theta after rounds 1 and 2. Deltas +2, +4 (mean 3, weighted 3.5), then +1, -3 (mean -1, weighted -2)."""
    theta, path = 1.0, []
    for index, deltas in enumerate([(2.0, 4.0), (1.0, -3.0)]):
        local = {client: one(theta + delta) for client, delta in enumerate(deltas)}
        theta = optimizer.aggregate(index, one(theta), local, COUNTS)["w"].item()
        path.append(theta)
    return path


@pytest.mark.parametrize(
    ("fed_alg", "variant", "first_step", "second_step"),
    [
        ("fedavg", "openfedllm", 3.5, -2.0),
        ("fedprox", "openfedllm", 3.5, -2.0),
        # m = 3.5, then m = 0.5 * 3.5 + 0.5 * -2
        ("fedavgm", "openfedllm", 3.5, 0.75),
        ("fedavgm", "reddi", 3.5, 0.75),
        # m = 3, v = 1 + 9; then m = -1, v = 11
        ("fedadagrad", "openfedllm", 1.5 / (math.sqrt(10) + 1), -0.5 / (math.sqrt(11) + 1)),
        ("fedadagrad", "reddi", 1.5 / (math.sqrt(10) + 1), -0.5 / (math.sqrt(11) + 1)),
        # m = 3, v = 3/4 + 9/4; then m = 1, v = 3 * 3/4 + 1/4
        ("fedadam", "openfedllm", 1.5 / (math.sqrt(3) + 1), 0.5 / (math.sqrt(2.5) + 1)),
        # m = 1.5, v as before; then m = 0.25, v = 3 * 3/4 + 1/4
        ("fedadam", "reddi", 0.75 / (math.sqrt(3) + 1), 0.125 / (math.sqrt(2.5) + 1)),
        # m = 3, v = 1 + 9/4; then m = 1, v = 3.25 - 1/4
        ("fedyogi", "openfedllm", 1.5 / (math.sqrt(3.25) + 1), 0.5 / (math.sqrt(3) + 1)),
        # m = 1.5, v as before; then m = 0.25, D^2 = 1, v = 3.25 - 1/4
        ("fedyogi", "reddi", 0.75 / (math.sqrt(3.25) + 1), 0.125 / (math.sqrt(3) + 1)),
    ],
)
def test_two_rounds_follow_the_formula(fed_alg, variant, first_step, second_step):
    first, second = two_rounds(server(fed_alg, fedopt_variant=variant))
    assert first == pytest.approx(1 + first_step, abs=1e-6)
    assert second == pytest.approx(1 + first_step + second_step, abs=1e-6)


def test_the_published_second_moment_squares_the_delta_not_the_momentum():
    moments = {}
    for variant in ("openfedllm", "reddi"):
        optimizer = server("fedadam", fedopt_variant=variant)
        for index, delta in enumerate([2.0, -6.0]):
            optimizer.aggregate(index, one(0.0), {0: one(delta)}, {0: 1})
        moments[variant] = optimizer.state_dict()["slots"]["second_moment"]["w"].item()
    # v_1 = 3/4 + 4/4 in both; then m = 0.5 * 2 - 0.5 * 6 = -2 against D = -6
    assert moments == {"openfedllm": 1.75 * 0.75 + 4 / 4, "reddi": 1.75 * 0.75 + 36 / 4}


def test_the_second_moment_may_start_at_zero():
    optimizer = server("fedadam", fedopt_variant="reddi", fedopt_v0=0.0)
    # m = 0.5 * 3, v = 9/4, step = 0.5 * 1.5 / (1.5 + 1)
    state = optimizer.aggregate(0, one(1.0), {0: one(3.0), 1: one(5.0)}, COUNTS)
    assert state["w"].item() == pytest.approx(1.3)


def test_scaffold_moves_its_control_variate_by_the_deltas_over_all_clients():
    optimizer = server("scaffold", num_clients=4)
    assert optimizer.broadcast == {}
    local, deltas = {0: one(3.0), 1: one(5.0)}, {0: one(1.0), 1: one(3.0)}
    state = optimizer.aggregate(0, one(1.0), local, COUNTS, deltas)
    assert state["w"].item() == 4.5
    assert optimizer.broadcast["control_variate"]["w"].item() == 1.0
    optimizer.aggregate(1, state, {1: one(5.0)}, COUNTS, {1: one(-2.0)})
    assert optimizer.broadcast["control_variate"]["w"].item() == 0.5


def test_localn_is_the_state_of_its_client():
    state = server("local1").aggregate(0, one(1.0), {1: one(5.0)}, COUNTS)
    assert state["w"].item() == 5.0


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_no_input_is_changed_and_no_output_is_shared(fed_alg):
    optimizer = server(fed_alg)
    theta, local, deltas = one(1.0), {0: one(3.0), 1: one(5.0)}, {0: one(1.0), 1: one(3.0)}
    for index in range(2):
        result = optimizer.aggregate(index, theta, local, COUNTS, deltas)
        result["w"].fill_(99.0)
    assert [s["w"].item() for s in (theta, *local.values(), *deltas.values())] == [1, 3, 5, 1, 3]


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_bfloat16_stays_bfloat16(fed_alg):
    local = {0: one(3.0, torch.bfloat16), 1: one(5.0, torch.bfloat16)}
    deltas = {client: one(0.0, torch.bfloat16) for client in local}
    assert server(fed_alg).aggregate(0, one(1.0, torch.bfloat16), local, COUNTS, deltas)["w"].dtype == torch.bfloat16


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_host_factors_reproduce_the_hosts_first_step(fed_alg):
    """Handing every client theta + sum_i g_i D_i gives what the host's own average of theta_i gives."""
    deltas, zero = {0: 2.0, 1: 4.0}, {0: one(0.0), 1: one(0.0)}
    own = server(fed_alg).aggregate(0, one(1.0), {c: one(1.0 + d) for c, d in deltas.items()}, COUNTS, zero)
    mean = sum(factor * deltas[client] for client, factor in host_factors(fed_alg, COUNTS).items())
    same = server(fed_alg).aggregate(0, one(1.0), {c: one(1.0 + mean) for c in deltas}, COUNTS, zero)
    assert same["w"].item() == pytest.approx(own["w"].item(), abs=1e-6)


def test_host_factors_weigh_by_rows_or_uniformly():
    assert host_factors("fedavgm", {3: 1, 5: 3}) == {3: 0.25, 5: 0.75}
    assert host_factors("local5", {5: 3}) == {5: 1.0}
    assert host_factors("fedyogi", {3: 1, 5: 3}) == {3: 0.5, 5: 0.5}
    assert {name for name in ALGORITHMS if load("algorithm", name).sample_weighted} == {
        "fedavg",
        "fedprox",
        "scaffold",
        "fedavgm",
    }


@pytest.mark.parametrize("fed_alg", ["fedavgm", "fedadam", "scaffold", "fedavg"])
def test_a_server_that_is_stored_and_loaded_goes_on_as_if_never_stopped(fed_alg):
    def step(optimizer, index):
        local = {0: one(3.0 + index), 1: one(5.0)}
        return optimizer.aggregate(index, one(1.0), local, COUNTS, {0: one(1.0), 1: one(2.0)})

    straight, stopped, resumed = (server(fed_alg) for _ in range(3))
    step(straight, 0), step(stopped, 0)
    stored = stopped.state_dict()
    resumed.load_state_dict(stored)
    step(stopped, 1)
    assert torch.equal(step(resumed, 1)["w"], step(straight, 1)["w"])


def test_a_stored_server_of_another_algorithm_or_variant_is_refused():
    stored = server("fedadam").state_dict()
    with pytest.raises(ValueError, match="fed_alg 'fedadam', this run 'fedyogi'"):
        server("fedyogi").load_state_dict(stored)
    with pytest.raises(ValueError, match="variant 'openfedllm', this run 'reddi'"):
        server("fedadam", fedopt_variant="reddi").load_state_dict(stored)
    with pytest.raises(ValueError, match=r"parts \['momentum'\], not \['momentum', 'second_moment'\]"):
        server("fedadam").load_state_dict({**stored, "slots": {"momentum": one(0.0)}})


def test_a_stored_server_of_another_model_is_refused_when_it_meets_the_model():
    optimizer = server("fedavgm")
    optimizer.load_state_dict(
        {"fed_alg": "fedavgm", "variant": "openfedllm", "slots": {"momentum": {"v": one(0)["w"]}}}
    )
    with pytest.raises(ValueError, match=r"momentum.*'v' is in only one"):
        optimizer.aggregate(1, one(1.0), {0: one(2.0)}, {0: 1})


def test_states_that_do_not_fit_are_named():
    fits = server("fedavg")
    with pytest.raises(ValueError, match=r"client 1.*'v' is in only one of them"):
        fits.aggregate(0, one(1.0), {0: one(1.0), 1: {"v": torch.zeros(1), "w": torch.zeros(1)}}, COUNTS)
    with pytest.raises(ValueError, match=r"client 1: 'w' has shape \(2,\), not \(1,\)"):
        fits.aggregate(0, one(1.0), {0: one(1.0), 1: {"w": torch.zeros(2)}}, COUNTS)
    with pytest.raises(ValueError, match="Client 7 has no entry in sample_counts"):
        fits.aggregate(0, one(1.0), {7: one(1.0)}, COUNTS)
    with pytest.raises(ValueError, match="without clients"):
        fits.aggregate(0, one(1.0), {}, COUNTS)
    with pytest.raises(ValueError, match="SCAFFOLD needs control_deltas"):
        server("scaffold").aggregate(0, one(1.0), {0: one(1.0)}, COUNTS)
    with pytest.raises(ValueError, match="Client 0 has no entry in control_deltas"):
        server("scaffold").aggregate(0, one(1.0), {0: one(1.0)}, COUNTS, {1: one(1.0)})


def test_an_unknown_algorithm_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="Did you mean 'fedadagrad'"):
        check_fed_alg("fedadgrad")
    with pytest.raises(UserError, match="fedopt_variant 'redi' is unknown"):
        server("fedadam", fedopt_variant="redi")
    for name in (*ALGORITHMS, "local0", "local12"):
        check_fed_alg(name)
    for name in ("local", "localN", "local-1"):
        with pytest.raises(UserError):
            check_fed_alg(name)
