"""Equations 2 to 5, against numbers worked out by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.aggregation.bama import Bama, normalized_factors, paper_factors, softmax_weights
from fedbias_plugin.aggregation.base import ClientReports
from fedbias_plugin.aggregation.plain import Plain
from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.registry import build


def made(**flags):
    """The rule that these flags name."""
    arguments = BiasArguments(**flags)
    return build("rule", arguments.aggregation, arguments)


def reports(scores, counts, fed_alg="fedavg"):
    empty = {client: {} for client in counts}
    return ClientReports(fed_alg, sample_counts=counts, bias_scores=scores, global_state={}, local_states=empty)


def test_eq_2_by_hand():
    # exp(-0.2 * 10) = 0.135335, exp(-0.2 * 5) = 0.367879, exp(-0.2 * 0) = 1; sum 1.503215
    weights = softmax_weights({0: 10.0, 1: 5.0, 2: 0.0}, 0.2)
    assert weights[0] == pytest.approx(0.0900306, abs=1e-7)
    assert weights[1] == pytest.approx(0.2447285, abs=1e-7)
    assert weights[2] == pytest.approx(0.6652410, abs=1e-7)


def test_a_client_one_over_lambda_points_worse_weighs_one_over_e():
    weights = softmax_weights({0: 5.0, 1: 0.0}, 0.2)
    assert weights[0] / weights[1] == pytest.approx(1 / math.e)


def test_huge_scores_neither_overflow_nor_vanish():
    weights = softmax_weights({0: 1e6, 1: 1e6 + 5}, 0.2)
    assert weights[0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert softmax_weights({0: 50.0, 1: 0.0}, 1e4) == {0: 0.0, 1: 1.0}


@given(
    st.dictionaries(st.integers(0, 50), st.floats(0, 50), min_size=1, max_size=20),
    st.floats(1e-3, 10),
)
def test_weights_sum_to_one_and_order_against_bias(scores, lambda_):
    weights = softmax_weights(scores, lambda_)
    assert math.fsum(weights.values()) == pytest.approx(1)
    ordered = sorted(scores, key=scores.__getitem__)
    assert all(weights[a] >= weights[b] for a, b in itertools.pairwise(ordered))


def test_eq_3_to_the_letter_shortens_the_step_by_the_number_of_clients():
    weights = {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    factors = paper_factors("fedavg", weights, {0: 10, 1: 10, 2: 10})
    assert sum(factors.values()) == pytest.approx(1 / 3)
    uneven = paper_factors("scaffold", {0: 0.5, 1: 0.25, 2: 0.25}, {0: 10, 1: 20, 2: 10})
    assert uneven == pytest.approx({0: 0.125, 1: 0.125, 2: 0.0625})


@pytest.mark.parametrize("fed_alg", ["fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_eq_4_weighs_deltas_without_sample_counts(fed_alg):
    weights = {0: 0.7, 1: 0.3}
    assert paper_factors(fed_alg, weights, {0: 1, 1: 99}) == weights


def test_normalized_factors_by_hand():
    # w_i n_i = 5, 5, 2.5 -> 0.4, 0.4, 0.2
    factors = normalized_factors("fedavg", {0: 0.5, 1: 0.25, 2: 0.25}, {0: 10, 1: 20, 2: 10})
    assert factors == pytest.approx({0: 0.4, 1: 0.4, 2: 0.2})
    assert normalized_factors("fedadam", {0: 0.6, 1: 0.4}, {0: 10, 1: 20}) == pytest.approx({0: 0.6, 1: 0.4})


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam"])
def test_equal_scores_leave_the_host_alone_under_normalized(fed_alg):
    rule = Bama(bama_lambda=0.2, bama_weighting="normalized")
    weighting = rule.weigh(reports({0: 7.0, 1: 7.0, 2: 7.0}, {0: 10, 1: 25, 2: 7}, fed_alg))
    assert weighting.factors is None
    assert weighting.mass == pytest.approx(1)


def test_equal_scores_still_shorten_the_step_under_paper():
    weighting = Bama(bama_lambda=0.2, bama_weighting="paper").weigh(reports({0: 7.0, 1: 7.0}, {0: 10, 1: 10}))
    assert weighting.factors == pytest.approx({0: 0.25, 1: 0.25})
    assert weighting.mass == pytest.approx(0.5)


def test_a_client_without_a_score_or_with_nan_is_named():
    rule = Bama(bama_lambda=0.2, bama_weighting="paper")
    with pytest.raises(ValueError, match=r"no bias score for client\(s\) \[1\]"):
        rule.weigh(reports({0: 1.0}, {0: 1, 1: 1}))
    with pytest.raises(ValueError, match="client 1 is nan"):
        rule.weigh(reports({0: 1.0, 1: float("nan")}, {0: 1, 1: 1}))


def test_the_registry_gives_the_rule_that_the_flag_names():
    assert isinstance(made(), Plain)
    rule = made(aggregation="bama", bama_lambda=3.0, bama_weighting="paper")
    assert isinstance(rule, Bama)
    assert rule.bama_lambda == 3.0


def test_host_weights_are_the_algorithms_own():
    counts = {0: 1, 1: 3}
    assert Plain().weigh(reports({}, counts)).weights == pytest.approx({0: 0.25, 1: 0.75})
    assert Plain().weigh(reports({}, counts, "fedyogi")).weights == pytest.approx({0: 0.5, 1: 0.5})
