"""Privacy of clients as a whole: sensitivity by hand and by brute force, the noise, and what is refused."""

from __future__ import annotations

import math
import random

import pytest
import torch

from fedbias_plugin.aggregation.base import ClientReports, Rule
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.metrics.suite import Measurement
from fedbias_plugin.registry import build
from fedbias_plugin.training.accounting import epsilon_of, gaussian_epsilon, gaussian_sigma
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.pipeline import Pipeline

LN2 = math.log(2)
BAMA = {"aggregation": "bama", "bama_lambda": LN2 / 10, "bama_bias_range": 10.0}
ON = {"dp_unit": "client", "dp_noise_multiplier": 1.0}


def rule_of(**flags) -> Rule:
    arguments = BiasArguments(**flags)
    return build("rule", arguments.aggregation, arguments)


def pipeline_of(tmp_path, *, clients=3, rounds=2, fed_alg="fedavg", num_clients=None, seed=3, **flags):
    """The stages of a run, its rule, and the stage that is tested."""
    arguments = BiasArguments(**{**ON, **flags})
    run = HostRun(tmp_path, fed_alg, num_clients or clients, clients, rounds, seed)
    pipeline = Pipeline(arguments, run, {})
    private = [stage for stage in pipeline._stages if stage.name == "client_dp"]
    return pipeline, build("rule", arguments.aggregation, arguments), *private


def mean_of(made, theta, states, scores=None, number=1, refused=()):
    """What a server algorithm gets in a round, less theta."""
    pipeline, rule, _ = made
    updates = {client: Update(client, state, rows=10 * (client + 1)) for client, state in states.items()}
    pipeline.at_server(updates, theta, number)
    for client, update in updates.items():
        update.measured = Measurement(bias_score=(scores or {}).get(client))
    used = {client: update for client, update in updates.items() if client not in refused and not update.fault}
    reports = ClientReports.of(used, theta, "fedavg")
    weighting = pipeline.on_weights(rule.weigh(reports) if used else None, rule, reports, number)
    return {name: weighting.state[name] - theta[name] for name in theta}, updates, weighting


def test_the_sensitivities_are_those_worked_out_by_hand():
    # lambda B = ln 2, C = 10: w_max = 1 / (1 + 9/2) = 2/11, twice that 4/11; a uniform mean 1/10
    bama = rule_of(**BAMA)
    assert bama.sensitivity(10) == pytest.approx(4 / 11, rel=1e-12)
    assert bama.sensitivity(10) / 2 == pytest.approx(2 / 11, rel=1e-12)
    assert rule_of().sensitivity(10) == pytest.approx(0.1)
    assert bama.sensitivity(1) == 2.0  # alone it moves everything
    assert rule_of(**{**BAMA, "bama_bias_range": 1e-9}).sensitivity(4) == pytest.approx(2 / 4)


def factors(rule, scores, clients):
    """Client id -> g_i of those that have a score."""
    empty = {client: {} for client in scores}
    reports = ClientReports("fedavg", dict.fromkeys(scores, 7), scores, {}, empty)
    return rule.weigh_bounded(reports, clients).factors


def moved(rule, scores, updates, clients=10):
    found = factors(rule, scores, clients)
    return sum((found[client] * updates[client] for client in found), torch.zeros(3, dtype=torch.float64))


def on_ball(draws, radius=1.0):
    vector = torch.tensor([draws.gauss(0, 1) for _ in range(3)], dtype=torch.float64)
    return vector * radius * draws.choice([1.0, draws.random()]) / vector.norm()


@pytest.mark.parametrize("lambda_b", [LN2, 0.1, 3.0])
def test_no_client_that_leaves_or_is_replaced_moves_bamas_mean_further(lambda_b):
    draws, rule = random.Random(0), rule_of(**{**BAMA, "bama_lambda": lambda_b / 10})
    bound, furthest = rule.sensitivity(10), 0.0
    for _ in range(400):
        scores = {client: draws.choice([0.0, 10.0, draws.uniform(0, 10), 40.0]) for client in range(10)}
        if draws.random() < 0.5:  # nearer to the worst: one good client among bad ones
            scores = {client: draws.uniform(9, 40) if client else 0.0 for client in range(10)}
        axis = on_ball(draws, 1.0)
        updates = {client: draws.choice([on_ball(draws), axis, -axis]) for client in range(10)}
        rest = {client: score for client, score in scores.items() if client}
        other = {**updates, 0: draws.choice([on_ball(draws), axis, -axis])}
        before = moved(rule, scores, updates)
        neighbours = (
            moved(rule, rest, updates),  # it sends nothing, and its place in the denominator stays
            moved(rule, rest, updates, clients=9),  # it was never there
            moved(rule, {**scores, 0: draws.uniform(0, 10)}, other),  # another in its place
        )
        furthest = max([furthest, *(float((before - after).norm()) for after in neighbours)])
    assert 0.8 * bound < furthest <= bound * (1 + 1e-12)


def test_the_bound_of_bama_is_reached_when_one_client_turns_round():
    rule, up = rule_of(**BAMA), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    scores = {0: 0.0, **dict.fromkeys(range(1, 10), 10.0)}
    updates = {0: up, **dict.fromkeys(range(1, 10), -up)}
    change = moved(rule, scores, updates) - moved(rule, scores, {**updates, 0: -up})
    assert float(change.norm()) == pytest.approx(4 / 11)


def test_a_uniform_mean_moves_by_s_over_c_when_a_client_leaves_and_by_twice_that_when_it_is_replaced():
    draws, rule = random.Random(1), rule_of()
    for _ in range(200):
        updates = {client: on_ball(draws) for client in range(10)}
        everybody = dict.fromkeys(range(10), 0.0)
        rest = dict.fromkeys(range(1, 10), 0.0)
        change = moved(rule, everybody, updates) - moved(rule, rest, updates)
        assert float(change.norm()) <= 0.1 * (1 + 1e-12)
        swapped = moved(rule, everybody, updates) - moved(rule, everybody, {**updates, 0: -updates[0]})
        assert float(swapped.norm()) == pytest.approx(0.2 * float(updates[0].norm()))


def test_who_sends_nothing_keeps_a_place_in_the_denominator():
    assert factors(rule_of(), {0: 0.0, 1: 0.0}, 4) == {0: 0.25, 1: 0.25}
    # e_0 = 1, e_1 = 1/2, and 1/2 for each of two who are not there: 1 / 2.5 and .5 / 2.5
    assert factors(rule_of(**BAMA), {0: 0.0, 1: 99.0}, 4) == pytest.approx({0: 0.4, 1: 0.2})
    assert factors(rule_of(**BAMA), {}, 4) == {}


def test_updates_are_clipped_and_averaged_uniformly_whatever_their_rows(tmp_path):
    theta = {"a": torch.tensor([1.0, 1.0])}
    states = {0: {"a": torch.tensor([4.0, 5.0])}, 1: {"a": torch.tensor([1.0, 1.4])}}  # norms 5 and .4
    made = pipeline_of(tmp_path, dp_noise_multiplier=0.0, dp_update_norm=1.0)
    mean, updates, weighting = mean_of(made, theta, states)
    assert mean["a"].tolist() == pytest.approx([0.6 / 3, (0.8 + 0.4) / 3])  # two of three answered
    assert (weighting.weights, weighting.mass) == ({0: 0.5, 1: 0.5}, pytest.approx(2 / 3))
    assert (updates[0].norm, updates[0].extra["dp_update_kept"]) == (5.0, pytest.approx(0.2))
    assert updates[0].state["a"].tolist() == pytest.approx([1.6, 1.8])  # what is scored is what counts
    assert updates[1].state is states[1]
    assert updates[1].extra["dp_update_kept"] == 1.0
    assert torch.equal(theta["a"], torch.ones(2))
    assert states[0]["a"].tolist() == [4.0, 5.0]


@pytest.mark.parametrize(("flags", "deviation"), [({}, 0.5 / 3), (BAMA, 2 / (1 + 2 / 2) * 0.5)])
def test_the_noise_has_the_deviation_of_sigma_times_sensitivity_times_s(tmp_path, flags, deviation):
    theta = {"a": torch.zeros(200, 100), "b": torch.zeros(20_000)}
    states = {client: {name: part.clone() for name, part in theta.items()} for client in range(3)}
    made = pipeline_of(tmp_path, dp_update_norm=0.5, **flags)
    assert made[2].deviation == pytest.approx(deviation)
    mean, updates, _ = mean_of(made, theta, states, scores=dict.fromkeys(range(3), 5.0))
    for part in mean.values():
        assert float(part.std()) == pytest.approx(deviation, rel=0.03)
        assert abs(float(part.mean())) < 4 * deviation / math.sqrt(20_000)
    assert updates[0].extra["dp_noise"] == pytest.approx(deviation)
    again, *_ = mean_of(pipeline_of(tmp_path, dp_update_norm=0.5, **flags), theta, states, dict.fromkeys(range(3), 5.0))
    assert torch.equal(again["a"], mean["a"])  # a round that is repeated
    other, *_ = mean_of(made, theta, states, scores=dict.fromkeys(range(3), 5.0), number=2)
    assert not torch.equal(other["a"], mean["a"])
    seeded, *_ = mean_of(
        pipeline_of(tmp_path, seed=4, dp_update_norm=0.5, **flags), theta, states, dict.fromkeys(range(3), 5.0)
    )
    assert not torch.equal(seeded["a"], mean["a"])


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_the_noise_joins_before_the_server_s_momentum_and_moments(tmp_path, fed_alg):
    theta = {"a": torch.zeros(50)}
    states = {client: {"a": torch.full((50,), float(client))} for client in range(3)}
    mean, _, weighting = mean_of(pipeline_of(tmp_path, fed_alg=fed_alg), theta, states)
    server = ServerOptimizer(fed_alg, num_clients=3)
    new = server.aggregate(0, theta, dict.fromkeys(range(3), weighting.state), {0: 1, 1: 5, 2: 7})
    if fed_alg == "fedavg":
        assert torch.allclose(new["a"], mean["a"], atol=1e-6)
    else:
        assert torch.allclose(server.state_dict()["slots"]["momentum"]["a"], mean["a"], atol=1e-6)


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedavgm", "fedadam"])
def test_the_bits_of_the_new_model_do_not_tell_of_rows_or_of_who_is_missing(tmp_path, fed_alg):
    """A mean of equal states is rounded by their number and rows, past the noise: one of them is averaged alone."""
    theta, noisy = {"a": torch.randn(5000)}, {"a": torch.randn(5000)}

    def averaged(rows):
        return ServerOptimizer(fed_alg, num_clients=3).aggregate(0, theta, dict.fromkeys(rows, noisy), rows)["a"]

    if fed_alg == "fedavg":
        assert not torch.equal(averaged({0: 10, 1: 20, 2: 31}), averaged({0: 10, 1: 20}))
        assert torch.equal(averaged({1: 1}), noisy["a"])
    assert torch.equal(averaged({0: 1}), averaged({2: 1}))
    _, _, weighting = mean_of(pipeline_of(tmp_path, fed_alg=fed_alg), theta, {0: noisy, 2: noisy})
    assert weighting.alone


def test_a_refused_update_is_not_there_and_a_round_without_any_is_noise(tmp_path):
    theta, good = {"a": torch.zeros(4)}, {"a": torch.full((4,), 0.1)}
    broken = {"a": torch.full((4,), float("nan"))}
    clean, *_ = mean_of(pipeline_of(tmp_path, dp_noise_multiplier=0.0), theta, {0: good, 1: broken, 2: good})
    assert clean["a"].tolist() == pytest.approx([0.2 / 3] * 4)
    noise, updates, weighting = mean_of(pipeline_of(tmp_path), theta, {0: broken, 1: broken})
    assert weighting.weights == {}
    assert weighting.mass == 0.0
    assert torch.isfinite(noise["a"]).all()
    assert noise["a"].abs().max() > 0
    assert updates[0].extra["dp_epsilon"] == gaussian_epsilon(1.0, 1, 1e-5)
    assert "dp_update_kept" not in updates[0].extra


def test_half_precision_is_clipped_by_what_it_holds_and_noised_before_it_is_rounded(tmp_path):
    theta = {"a": torch.ones(64, dtype=torch.bfloat16)}
    states = {client: {"a": torch.full((64,), 3.0, dtype=torch.bfloat16)} for client in range(3)}
    seen = []
    weighted_state(theta, states, {0: 1.0}, lambda piece: seen.append(piece.dtype))
    assert seen == [torch.float32]
    mean, *_ = mean_of(pipeline_of(tmp_path, dp_noise_multiplier=0.0, dp_update_norm=1.0), theta, states)
    assert mean["a"].float().norm() <= 1.0


def test_the_budget_is_that_of_all_planned_rounds_and_is_never_overdrawn(tmp_path):
    theta = {"a": torch.zeros(4)}
    states = {client: {"a": torch.ones(4)} for client in range(3)}
    made = pipeline_of(tmp_path, rounds=3, dp_noise_multiplier=None, dp_epsilon=10.0)
    spent = [mean_of(made, theta, states, number=number)[1][0].extra for number in (1, 2, 3)]
    assert [extra["dp_epsilon"] for extra in spent] == [gaussian_epsilon(made[2].sigma, n, 1e-5) for n in (1, 2, 3)]
    assert 9.99 < spent[-1]["dp_epsilon"] <= 10.0
    assert spent[-1]["dp_epsilon_max"] == spent[-1]["dp_epsilon"]
    assert spent[-1]["dp_delta"] == 1e-5
    with pytest.raises(UserError, match="Round 4 with 3 clients is not one of the 3 rounds of 3 clients"):
        mean_of(made, theta, states, number=4)
    for number, more in ((2, states), (3, {**states, 3: states[0]})):  # again, or more clients than planned
        fresh = pipeline_of(tmp_path, rounds=3)
        fresh[2].load_state_dict({"released": 2, "last": 2})
        with pytest.raises(UserError, match="it would spend more than was promised"):
            mean_of(fresh, theta, more, number=number)
    assert made[2].state_dict() == {"released": 3, "last": 3}


def test_a_whole_round_of_gaussian_noise_is_accounted_exactly():
    assert gaussian_epsilon(1.0, 1, 1e-5) == pytest.approx(4.37718, abs=1e-5)  # dp-accounting 0.6.0 (PLD)
    assert gaussian_epsilon(2.0, 4, 1e-5) == pytest.approx(4.37718, abs=1e-5)  # sigma / sqrt(rounds)
    assert gaussian_epsilon(1.0, 0, 1e-5) == 0.0
    assert gaussian_epsilon(0.0, 1, 1e-5) == math.inf
    assert gaussian_epsilon(1e6, 1, 1e-5) == 0.0  # delta alone covers it
    assert 1e6 < gaussian_epsilon(1e-3, 4, 1e-5) < math.inf
    for epsilon in (0.5, 3.0, 10.0, 20.0, 300.0):
        sigma = gaussian_sigma(epsilon, 5, 1e-5)
        assert gaussian_epsilon(sigma, 5, 1e-5) <= epsilon < gaussian_epsilon(sigma - 2e-4, 5, 1e-5)


def test_the_exact_epsilon_is_not_above_opacus():
    pytest.importorskip("opacus")
    assert gaussian_epsilon(2.0, 5, 1e-5) == pytest.approx(epsilon_of("prv", 2.0, 1.0, 5, 1e-5), abs=0.02)
    assert gaussian_epsilon(2.0, 5, 1e-5) < epsilon_of("rdp", 2.0, 1.0, 5, 1e-5)


def test_delta_is_far_below_one_over_the_clients(tmp_path):
    assert pipeline_of(tmp_path)[2].delta == 1e-5
    assert pipeline_of(tmp_path, num_clients=100_000)[2].delta == 1e-6
    assert pipeline_of(tmp_path, dp_delta=1e-3)[2].delta == 1e-3


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"aggregation": "bama"}, r"needs a bound on BAMA's weights.*give --bama_bias_range B"),
        ({"aggregation": "median"}, "--aggregation median has no bound on what one client moves"),
        ({"fed_alg": "scaffold"}, r"clients send a second thing \(control_variate\)"),
        ({"fed_alg": "fedprox", **BAMA}, "a mu that was made of the others' data"),
        ({"fed_alg": "fedbuff"}, "does not know what the server makes of the mean under --fed_alg fedbuff"),
        ({"dp_epsilon": 3.0}, "--dp_epsilon chooses the noise and --dp_noise_multiplier is the noise; give one"),
    ],
)
def test_what_would_tell_of_a_client_past_the_noise_is_refused(tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        pipeline_of(tmp_path, **flags)


def test_fedprox_alone_is_fine_and_rows_have_no_stage(tmp_path):
    assert pipeline_of(tmp_path, fed_alg="fedprox")[2].name == "client_dp"
    assert len(pipeline_of(tmp_path, dp_unit="example")) == 2
    assert pipeline_of(tmp_path, fed_alg="local1")[2].clients == 1


def test_the_records_say_what_is_not_covered(tmp_path):
    assert "raw b_i" in pipeline_of(tmp_path)[2].warnings[0]
    assert "promises nothing" in pipeline_of(tmp_path, dp_noise_multiplier=0.0)[2].warnings[0]
