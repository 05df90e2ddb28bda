"""BAMA's gate: a model that says nothing looks unbiased, and has no weight where ability is asked for."""

from __future__ import annotations

import math

import pytest

from fedbias_plugin.aggregation.ability import kept_ability
from fedbias_plugin.aggregation.bama import Bama, softmax_weights
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.options import check_options
from fedbias_plugin.tracking.records import ClientRecord, GlobalRecord, RoundRecord

SCORES = {0: 30.0, 1: 1.0, 2: 28.0}
LMS = {0: 80.0, 1: 50.0, 2: 76.0}  # client 1 is destroyed


def reports(lms=LMS, of_global=80.0, scores=SCORES):
    blocks = {client: {"stereoset": {"value": 50.0, "lms": value}} for client, value in lms.items()}
    nobody = {client: {} for client in lms}
    common = {"stereoset": {"lms": of_global}}
    return ClientReports("fedavg", dict.fromkeys(lms, 10), scores, {}, nobody, metrics=blocks, of_global=common)


def test_a_destroyed_model_has_the_largest_weight_without_the_gate_and_none_with_it():
    free = Bama(bama_lambda=0.2).weigh(reports())
    assert free.weights[1] > 0.99
    assert free.extra == {}
    gated = Bama(bama_lambda=0.2, bama_min_ability=0.9).weigh(reports())
    # 80/80, 50/80, 76/80; exp(-.2 * 30) against exp(-.2 * 28)
    assert gated.weights == pytest.approx({0: 1 / (1 + math.exp(0.4)), 1: 0.0, 2: 1 / (1 + math.exp(-0.4))})
    assert gated.factors == pytest.approx(gated.weights)
    assert gated.extra == {0: {"ability": 1.0}, 1: {"ability": 0.625, "gated": 1.0}, 2: {"ability": 0.95}}


def test_an_lms_that_is_no_number_is_no_ability():
    gated = Bama(bama_lambda=0.2, bama_min_ability=0.9).weigh(reports({**LMS, 1: float("nan")}))
    assert gated.weights[1] == 0.0
    assert gated.extra[1]["gated"] == 1.0


def test_without_the_gate_the_weights_are_those_of_eq_2_bit_for_bit_and_nothing_is_compared():
    rule = Bama(bama_lambda=0.2)
    assert rule.compares == ()
    assert rule.weigh(reports()).weights == softmax_weights(SCORES, 0.2)
    able = Bama(bama_lambda=0.2, bama_min_ability=0.5)
    assert able.compares == ("stereoset", "heldout_loss")
    assert able.weigh(reports()).weights == softmax_weights(SCORES, 0.2)
    assert able.weigh(reports()).factors == rule.weigh(reports()).factors


def test_where_nobody_is_able_nothing_is_weighed():
    rule = Bama(bama_lambda=0.2, bama_min_ability=0.9)
    weighting = rule.weigh(reports(of_global=100.0))
    assert (weighting.weights, weighting.mass) == ({}, 0.0)
    assert weighting.factors == dict.fromkeys(SCORES, 0.0)
    assert rule.last_weights == {}


def test_without_lms_the_held_out_loss_counts_and_less_of_it_is_more():
    blocks = {"heldout_loss": {"loss": 4.0}}
    assert kept_ability(blocks, {"heldout_loss": {"loss": 2.0}}) == 0.5
    both = {"stereoset": {"lms": 60.0}, **blocks}
    assert kept_ability(both, {"stereoset": {"lms": 80.0}, "heldout_loss": {"loss": 2.0}}) == 0.75
    assert kept_ability(blocks, {"stereoset": {"lms": 80.0}}) is None
    assert kept_ability({"stereoset": {"lms": 10.0}}, {"stereoset": {"lms": 0.0}}) == 1.0
    with pytest.raises(ValueError, match=r"of client\(s\) \[0, 1, 2\]"):
        Bama(bama_min_ability=0.9).weigh(ClientReports("fedavg", dict.fromkeys(SCORES, 1), SCORES, {}, SCORES))


def test_a_range_caps_what_bias_can_cost():
    capped = Bama(bama_lambda=0.2, bama_bias_range=10.0).weigh(reports()).weights
    assert capped == pytest.approx(softmax_weights({0: 10.0, 1: 1.0, 2: 10.0}, 0.2))


def test_a_gated_client_stands_in_the_bounded_sum_as_one_that_sent_nothing():
    rule = Bama(bama_lambda=math.log(2) / 10, bama_bias_range=10.0, bama_min_ability=0.9)
    # e = 1/2 (b at the range), gated: 1/2, and e = 1/2 ** (.8) for b = 8
    found = rule.weigh_bounded(reports(scores={0: 30.0, 1: 1.0, 2: 8.0}), 3)
    total = 0.5 + 0.5 + 0.5**0.8
    assert found.factors == pytest.approx({0: 0.5 / total, 1: 0.0, 2: 0.5**0.8 / total})
    assert found.mass == pytest.approx(1 - 0.5 / total)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    nobody = rule.weigh_bounded(reports(of_global=100.0), 3)
    assert (nobody.weights, nobody.mass, nobody.factors) == ({}, 0.0, dict.fromkeys(SCORES, 0.0))


@pytest.mark.parametrize("share", [0.0, 1.1])
def test_a_share_is_above_0_and_at_most_1(share):
    from fedbias_plugin.errors import UserError

    with pytest.raises(UserError, match="--bama_min_ability must be greater than 0 and at most 1"):
        check_options(Bama(bama_min_ability=share))


def record(number, weights, lms=LMS, of_global=80.0, extra=None):
    clients = {
        client: ClientRecord(None, 10, metrics={"stereoset": {"lms": lms[client]}}, weight=weight)
        for client, weight in weights.items()
    }
    for client, numbers in (extra or {}).items():
        clients[client].extra = numbers
    block = {"stereoset": {"lms": 1.0, "probe": {"lms": of_global}}}
    return RoundRecord(number, GlobalRecord(block), clients, "bama")


def said(rule, *given, **more):
    return [text for text in rule.warnings(record(*given, **more), 0.5) if "ability" in text]


def test_a_client_far_below_the_model_of_the_round_before_is_told_of_without_the_gate():
    weights = {0: 0.01, 1: 0.98, 2: 0.01}
    rule = Bama()
    assert said(rule, 0, {}) == []
    (text,) = said(rule, 1, weights, of_global=51.0)
    assert text.startswith("ability lost: client 1 (62% at the least of the LMS that the global model had before)")
    resumed = Bama()
    resumed.load_state_dict(rule.state_dict())
    for later in (rule, resumed):
        assert said(later, 2, weights) == []  # the model before was destroyed itself
    assert said(Bama(), 1, weights) == []  # nothing to compare with


def test_the_gate_says_who_has_no_weight_and_why():
    extra = {0: {"ability": 1.0}, 1: {"ability": 0.625, "gated": 1.0}}
    (text,) = said(Bama(bama_min_ability=0.9), 1, {0: 1.0, 1: 0.0, 2: 0.5}, extra=extra)
    assert text == (
        "gated: no weight for client 1 (62%), less than 90% (--bama_min_ability) of the ability that the global model "
        "had before the round."
    )
    (text,) = said(Bama(bama_min_ability=0.9), 1, {1: None}, extra={1: extra[1]})
    assert text.endswith("before the round; nobody is left, and nothing is learned in this round.")
