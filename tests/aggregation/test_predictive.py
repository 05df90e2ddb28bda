"""The rule ``predictive``: by hand, against eq. 2 of BAMA, and against a search over the whole simplex."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from fedbias_plugin.aggregation.bama import softmax_weights
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.bias_program import BiasProgram, Lean, _Model, excess_losses
from fedbias_plugin.aggregation.predictive import Predictive
from fedbias_plugin.errors import UserError
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord

BALANCED = np.asarray([1.0, -1.0] * 20)
SIMPLEX = np.asarray([(a, b, 60 - a - b) for a in range(61) for b in range(61 - a)]) / 60


def scores(margins, groups=None):
    return SimpleNamespace(margins=(np.asarray(margins), groups))


def reports(clients, losses=None, rows=None, theta=BALANCED, fed_alg="fedavg") -> ClientReports:
    """A round in which client i has the margins ``clients[i]`` on CrowS-Pairs, and a held-out loss."""
    losses = losses or [1.0] * len(clients)
    return ClientReports(
        fed_alg,
        dict(enumerate(rows or [10] * len(clients))),
        bias_scores={},
        global_state={},
        local_states={},
        metrics={client: {"heldout_loss": {"loss": loss}} for client, loss in enumerate(losses)},
        item_scores={client: {"crows_pairs": scores(margins)} for client, margins in enumerate(clients)},
        theta_scores={"crows_pairs": scores(theta)},
    )


def drawn(seed, clients=3, items=40) -> BiasProgram:
    """A random round with two benchmarks, the second in groups."""
    draws = np.random.default_rng(seed)
    shifts = draws.normal(0, draws.choice([0.3, 2, 10]), (clients, 1))
    leans = []
    for share, groups in ((1.0, None), (0.5, np.asarray([f"term {k % 9}" for k in range(items)]))):
        before = draws.normal(draws.normal(0, 0.5), 1, items)
        leans.append(Lean.of(before, before + share * shifts + draws.normal(0, 0.5, (clients, items)), groups))
    host = draws.dirichlet([5.0] * clients)
    return BiasProgram(host, leans, excess_losses(draws.normal(1, draws.choice([0.01, 0.1]), clients)))


@pytest.mark.parametrize("seed", range(12))
def test_no_point_of_a_grid_over_the_simplex_has_a_smaller_objective(seed):
    program = drawn(seed)
    weights = program.solve()
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert float(program.value(weights)) <= program.value(SIMPLEX).min() + 1e-9


def test_two_benchmarks_that_nearly_say_the_same_have_the_prices_that_no_grid_betters():
    slopes = np.asarray([[60.0, -70.0, 40.0], [57.0, -68.0, 39.0]])
    noise = np.asarray([3.0, 1.0])
    model = _Model(np.log(np.full(3, 1 / 3)), slopes, np.asarray([5.0, -4.0]), noise, 0.2)
    prices = model.best_prices(np.zeros(2))
    line = np.linspace(-0.2, 0.2, 41)
    assert model.dual(prices) >= max(model.dual(np.asarray([one, other])) for one in line for other in line)
    # optimal: beyond its noise at the end of the price's range, at it within, and below it at 0
    for price, bias, free in zip(prices, model.biases(prices), noise, strict=True):
        at_end, beyond = abs(price) == 0.2, abs(bias) - free
        assert beyond >= -1e-6 if at_end else beyond == pytest.approx(0, abs=1e-6) if price else beyond <= 1e-6
    assert Predictive(predictive_lambda=0.0).weigh(reports([BALANCED + 5, BALANCED])).factors is None


def test_the_objective_is_the_issue_s_formula_written_out():
    program, w = drawn(3), np.asarray([0.2, 0.5, 0.3])
    total = sum(one * math.log(one / h) for one, h in zip(w, program.host, strict=True))
    total += 20 * sum(one * e for one, e in zip(w, program.excess, strict=True))
    for lean, groups in zip(program.leans, (range(40), [k % 9 for k in range(40)]), strict=True):
        tau = np.median([abs(m) for m in lean.before])
        found = {group: [] for group in groups}
        at_theta = {group: [] for group in groups}
        for k, group in enumerate(groups):
            margin = lean.before[k] + sum(w[i] * lean.moves[i][k] for i in range(3))
            found[group].append(50 * math.tanh(margin / tau))
            at_theta[group].append(50 * math.tanh(lean.before[k] / tau))
        bias = np.mean([np.mean(values) for values in found.values()])
        means = [np.mean(values) for values in at_theta.values()]
        total += 0.2 * max(0.0, abs(bias) - 2 * np.std(means, ddof=1) / math.sqrt(len(means)))
        assert float(lean.bias(w)) == pytest.approx(bias)
        step = np.asarray([1e-6, 0, 0])
        slope = (lean.bias(w + step) - lean.bias(w - step)) / 2e-6
        assert lean.gradient(w)[0] == pytest.approx(float(slope), rel=1e-5)
    assert float(program.value(w)) == pytest.approx(total)


def test_two_clients_agree_with_a_search_along_the_line():
    lean = Lean.of(BALANCED, np.stack([BALANCED + 0.8, BALANCED - 0.1]))
    program = BiasProgram(np.asarray([0.5, 0.5]), [lean], np.zeros(2), lambda_=0.2, z=0.0)
    line = minimize_scalar(lambda w: float(program.value(np.asarray([w, 1 - w]))), bounds=(0, 1), method="bounded")
    # the bias is nothing where 0.8 w = 0.1 (1 - w), nearly: tanh bends
    assert program.solve()[0] == pytest.approx(line.x, abs=1e-4)
    assert program.solve()[0] == pytest.approx(1 / 9, abs=0.01)


def test_biases_that_agree_in_sign_are_weighed_by_eq_2_with_signed_scores():
    moves = [0.01, 0.02, 0.04]
    lean = Lean.of(BALANCED, np.stack([BALANCED + move for move in moves]))
    found = BiasProgram(np.full(3, 1 / 3), [lean], np.zeros(3), lambda_=0.2, z=0.0).solve()
    points = {i: 50 * (1 - math.tanh(1) ** 2) * move for i, move in enumerate(moves)}  # what client i alone would add
    assert found.tolist() == pytest.approx(list(softmax_weights(points, 0.2).values()), rel=1e-3)


@pytest.mark.parametrize("rows", [[10, 10, 10], [10, 20, 20]])
def test_noise_alone_leaves_the_host_s_average_untouched(rows):
    draws = np.random.default_rng(0)
    round_ = reports([BALANCED + draws.normal(0, 0.3, 40) for _ in range(3)], rows=rows)
    weighting = Predictive().weigh(round_)
    assert weighting.factors is None
    assert weighting.weights == pytest.approx({i: n / sum(rows) for i, n in enumerate(rows)})
    assert abs(weighting.of_round["of_host/crows_pairs"]) < weighting.of_round["noise/crows_pairs"]
    # 50 tanh(1) in every item, up or down: standard deviation over sqrt(40)
    assert weighting.of_round["noise/crows_pairs"] == pytest.approx(50 * math.tanh(1) * math.sqrt(40 / 39) / 40**0.5)


def test_no_claim_of_rows_counts_for_more_than_the_median():
    alike = [BALANCED] * 3
    claimed = Predictive().weigh(reports(alike, rows=[100, 150, 100_000]))
    assert claimed.weights == pytest.approx({0: 0.25, 1: 0.375, 2: 0.375})
    assert claimed.factors == claimed.weights
    majority = Predictive().weigh(reports(alike, rows=[100, 300, 300]))  # whose claims are the median
    assert majority.weights == pytest.approx({0: 1 / 7, 1: 3 / 7, 2: 3 / 7})
    of_server = Predictive().weigh(reports(alike, rows=[1, 5, 500], fed_alg="fedadam"))
    assert of_server.weights == pytest.approx(dict.fromkeys(range(3), 1 / 3))


def test_the_differences_between_clients_are_shrunk_by_their_noise_and_not_the_mean():
    draws = np.random.default_rng(4)
    groups = np.asarray([f"term {k % 5}" for k in range(40)])
    after = np.stack([BALANCED + shift + draws.normal(0, 1, 40) for shift in (0.0, 0.4, 0.9)])
    lean, host = Lean.of(BALANCED, after, groups), np.asarray([0.2, 0.3, 0.5])
    points = [[50 * math.tanh(m) for m in row] for row in after]  # tau is 1
    apart = [
        [p - sum(h * row[k] for h, row in zip(host, points, strict=True)) for k, p in enumerate(own)] for own in points
    ]
    of_terms = [[np.mean(own[term::5]) for term in range(5)] for own in apart]
    noise = sum(h * np.var(terms, ddof=1) / 5 for h, terms in zip(host, of_terms, strict=True))
    total = sum(h * np.mean(terms) ** 2 for h, terms in zip(host, of_terms, strict=True))
    assert lean.reliability(host) == pytest.approx(1 - noise / total)
    shrunk = lean.shrunk(host, lean.reliability(host))
    assert float(shrunk.bias(host)) == pytest.approx(float(lean.bias(host)))
    spread = [np.ptp(one.moves.mean(axis=1)) for one in (lean, shrunk)]
    assert spread[1] / spread[0] == pytest.approx(lean.reliability(host))
    alike = Lean.of(BALANCED, np.stack([BALANCED + 1] * 3))
    assert alike.reliability(host) == 0
    assert Lean.of(BALANCED, np.stack([BALANCED, BALANCED + 5, BALANCED])).reliability(host) > 0.95


def test_clients_that_differ_by_noise_keep_their_weights_though_the_average_is_biased():
    draws = np.random.default_rng(0)
    clients = [BALANCED + 0.8 + draws.normal(0, 0.5, 40) for _ in range(3)]
    round_ = reports(clients, theta=BALANCED + 0.8)
    weighting = Predictive().weigh(round_)
    assert weighting.of_round["of_host/crows_pairs"] > 2 * weighting.of_round["noise/crows_pairs"]
    assert weighting.of_round["reliability/crows_pairs"] < 0.5
    effective = 1 / sum(weight**2 for weight in weighting.weights.values())
    assert effective > 2.98
    leans = [Lean.of(BALANCED + 0.8, np.stack(clients))]
    plain = BiasProgram(np.full(3, 1 / 3), leans, np.zeros(3), 0.2, 2.0).solve()
    assert 1 / (plain @ plain) < 2.95  # the same round unshrunk


def test_a_gamed_client_without_bias_has_the_weight_that_its_loss_leaves_it():
    weighting = Predictive().weigh(reports([BALANCED] * 3, losses=[0.8, 0.8, 1.2]))
    assert weighting.weights[2] == pytest.approx(math.exp(-8) / (2 + math.exp(-8)))
    assert weighting.extra[2]["excess_loss"] == pytest.approx(0.4)
    assert Predictive(predictive_kappa=0.0).weigh(reports([BALANCED] * 3, losses=[0.8, 0.8, 1.2])).factors is None


def test_a_clean_client_among_two_biased_ones_has_most_of_the_weight_though_it_is_the_minority():
    clients = [BALANCED + 5, BALANCED + 6, BALANCED + 0.05]
    weighting = Predictive().weigh(reports(clients))
    assert weighting.weights[2] > 0.9
    assert abs(weighting.of_round["predicted/crows_pairs"]) < 2 * weighting.of_round["noise/crows_pairs"]
    assert weighting.of_round["of_host/crows_pairs"] > 45
    assert weighting.extra[1]["alone/crows_pairs"] > 45


def test_a_sign_flip_and_a_biased_client_cancel_and_neither_is_preferred_for_it():
    weighting = Predictive().weigh(reports([BALANCED + 2, BALANCED - 2, BALANCED]))
    assert weighting.weights == pytest.approx(dict.fromkeys(range(3), 1 / 3))


def test_one_client_and_a_hundred():
    assert Predictive().weigh(reports([BALANCED + 3])).weights == {0: 1.0}
    program = drawn(5, clients=100, items=60)
    first = program.solve()
    assert first.tolist() == program.solve().tolist()
    assert float(program.value(first)) < float(program.value(program.host))


@pytest.mark.parametrize(("losses", "weights"), [([1.0, 1.0, math.inf], [0.5, 0.5, 0]), ([math.inf] * 3, [1 / 3] * 3)])
def test_a_loss_that_is_not_finite_takes_all_weight_unless_all_are_so(losses, weights):
    found = Predictive().weigh(reports([BALANCED] * 3, losses=losses))
    assert list(found.weights.values()) == pytest.approx(weights)


def test_what_was_not_measured_is_told():
    with pytest.raises(UserError, match=r"held-out loss of client\(s\) \[1\].*--predictive_kappa 0"):
        Predictive().weigh(reports([BALANCED] * 2, losses=[1.0, None]))
    for missing in ({0: {"crows_pairs": scores(BALANCED)}, 1: {}}, {0: {}, 1: {}}):
        round_ = reports([BALANCED] * 2)
        broken = ClientReports("fedavg", {0: 1, 1: 1}, {}, {}, {}, metrics=round_.metrics, item_scores=missing,
                               theta_scores=round_.theta_scores)  # fmt: skip
        with pytest.raises(ValueError, match="margins of every client and of theta"):
            Predictive().weigh(broken)


def test_a_majority_that_made_the_model_worse_is_gated_by_the_loss_it_began_with():
    losses = [1.5, 1.6, 1.0]  # the median is a poisoned client's
    by_median = Predictive().weigh(reports([BALANCED] * 3, losses=losses))
    assert by_median.weights[0] == pytest.approx(by_median.weights[2])
    rule = Predictive()
    rule.after({"heldout_loss": SimpleNamespace(loss=1.1)})
    round_ = reports([BALANCED] * 3, losses=losses)
    found = rule.weigh(round_)
    assert [found.extra[client]["excess_loss"] for client in range(3)] == pytest.approx([0.4, 0.5, 0.0])
    assert [found.weights[client] / found.weights[2] for client in (0, 1)] == pytest.approx(
        [math.exp(-8), math.exp(-10)]
    )
    measured = ClientReports(**{**vars(round_), "of_global": {"heldout_loss": {"loss": 1.1}}})
    assert Predictive().weigh(measured).weights == found.weights  # nobody told it before
    rule.after({"heldout_loss": SimpleNamespace(loss=1.7)})
    assert rule.weigh(round_).weights == by_median.weights  # all are better than what they began with


def test_theta_is_measured_once_and_what_is_known_of_it_survives_a_resume():
    rule = Predictive()
    assert rule.reads_theta
    loss = SimpleNamespace(loss=0.9)
    assert rule.after({"crows_pairs": scores(BALANCED), "other": object(), "heldout_loss": loss}) == {}
    assert not rule.reads_theta
    again = Predictive()
    again.load_state_dict(rule.state_dict())
    clients = [BALANCED + 3, BALANCED, BALANCED]
    blind = ClientReports(**{**vars(reports(clients)), "theta_scores": {}})
    assert again.weigh(blind).weights == rule.weigh(reports(clients)).weights
    assert again.theta_loss == 0.9
    for unknown in ({}, {"heldout_loss": SimpleNamespace(loss=math.inf)}):
        again.after({"crows_pairs": scores(BALANCED), **unknown})
        assert again.reads_theta
    assert not Predictive(predictive_kappa=0.0, margins=again.margins).reads_theta
    again.load_state_dict({"margins": rule.margins})  # of a run that an earlier version began
    assert again.reads_theta
    again.load_state_dict(rule.state_dict())
    again.weigh(blind)
    measured = again.after({"crows_pairs": scores(BALANCED + 1)})
    assert measured == {"measured/crows_pairs": pytest.approx(25 * math.tanh(2))}  # half of the items at 2, half at 0
    assert again.after({}) == {}
    assert again.reads_theta


def test_a_reader_is_told_of_few_clients_and_of_a_prediction_that_failed():
    weights = {0: 0.8, 1: 0.1, 2: 0.1}
    clients = {c: ClientRecord(None, 5, weight=w, extra={"excess_loss": 0.1 * c}) for c, w in weights.items()}
    extra = {"predicted/stereoset": 2.0, "measured/stereoset": 9.5, "noise/stereoset": 2.0}
    record = RoundRecord(1, GlobalRecord(), clients, effective_clients=1 / 0.66, extra=extra)
    few, off = Predictive().warnings(record, 0.5)
    assert few.startswith(
        "few clients count: 1.52 effective clients of 3; client 1 has 10.0% of the weight, 0.100 nats"
    )
    assert off.startswith("prediction off: the average was to lean by 2.0 points on the probe items of stereoset, and ")
    record.extra["measured/stereoset"], record.effective_clients = 7.5, 2.0
    assert Predictive().warnings(record, 0.5) == []
