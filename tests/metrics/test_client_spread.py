"""The spread over clients, against numbers worked out by hand, and the gap that chance alone shows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedbias_plugin.metrics.client_loss import ClientAccuracy, ClientLoss
from fedbias_plugin.metrics.client_spread import (
    chance_of_losses,
    chance_of_shares,
    jain,
    mean_interval,
    small_large,
    spread,
    wilson,
)
from fedbias_plugin.metrics.client_tests import ClientTests, own_scores
from fedbias_plugin.tasks.base import RowScores

NINE_EIGHT_FOUR = {0: 0.9, 1: 0.8, 2: 0.4}


def test_accuracies_of_the_issue():
    found = spread(NINE_EIGHT_FOUR, {}, higher_is_better=True)
    assert found["value"] == pytest.approx(0.7)
    assert (found["worst"], found["best"]) == (0.4, 0.9)
    assert found["mean_worst"] == pytest.approx(0.3)
    assert found["best_worst"] == pytest.approx(0.5)
    assert found["variance"] == pytest.approx((0.2**2 + 0.1**2 + 0.3**2) / 3)  # of the population: over C, not C - 1
    assert found["std"] == pytest.approx(math.sqrt(0.14 / 3))
    assert found["jain"] == pytest.approx(2.1**2 / (3 * (0.81 + 0.64 + 0.16)))
    assert found["small_large"] is None


def test_the_worst_loss_is_the_largest_and_its_gaps_are_positive():
    found = spread({0: 1.0, 1: 2.0, 2: 6.0}, {}, higher_is_better=False)
    assert (found["worst"], found["best"], found["mean_worst"], found["best_worst"]) == (6.0, 1.0, 3.0, 5.0)


def test_one_client_has_a_value_and_no_gap():
    found = spread({0: 0.5}, {0: 9}, higher_is_better=True)
    assert (found["value"], found["worst"]) == (0.5, 0.5)
    assert {name for name, number in found.items() if number is None} == {
        *("variance", "std", "mean_worst", "best_worst", "small_large", "jain")
    }


def test_small_clients_that_fare_worse_have_a_positive_gap_in_accuracy_and_in_loss():
    rows = dict(enumerate((10, 20, 30, 40, 500, 600, 700)))
    accuracy = dict(enumerate((0.1, 0.2, 0.3, 0.0, 0.7, 0.8, 0.9)))  # the middle one counts on neither side
    assert small_large(accuracy, rows, higher_is_better=True) == pytest.approx(0.6)
    losses = {client: 1 - value for client, value in accuracy.items()}
    assert small_large(losses, rows, higher_is_better=False) == pytest.approx(0.6)


@pytest.mark.parametrize("rows", [(1, 2, 3, 4, 5), (9, 9, 9, 9, 9, 9), (1, 5, 5, 5, 5, 9)])
def test_too_few_clients_or_equally_large_ones_have_no_gap_of_size(rows):
    values = {client: float(client) for client in range(len(rows))}
    assert small_large(values, dict(enumerate(rows)), higher_is_better=True) is None


def test_jain_is_1_for_equals_and_1_by_c_for_a_single_winner():
    assert jain([0.3, 0.3, 0.3]) == pytest.approx(1.0)
    assert jain([0.0, 0.0, 0.0, 0.9]) == pytest.approx(0.25)
    assert jain([0.0, 0.0]) is None


def test_wilson_against_published_values():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(50, 50)[1] == 1.0


def test_chance_of_the_issue_worst_of_ten_with_fifty_rows_at_80_percent():
    cdf = np.cumsum([math.comb(50, k) * 0.8**k * 0.2 ** (50 - k) for k in range(51)])
    exact = 0.8 - ((1 - cdf[:-1]) ** 10).sum() / 50  # p - E min of ten binomials; a normal's is 1.539 sqrt(.16 / 50)
    assert exact == pytest.approx(0.0899, abs=1e-4)
    assert 1.539 * math.sqrt(0.16 / 50) == pytest.approx(0.087, abs=1e-4)
    found = chance_of_shares(400, [50] * 10, seed=1)
    assert found["chance_mean_worst"] == pytest.approx(exact, abs=0.002)
    assert found["chance_mean_worst"] < found["chance_mean_worst_high"] < 0.2
    assert found["chance_best_worst"] > found["chance_mean_worst"]
    assert found == chance_of_shares(400, [50] * 10, seed=1)
    assert found != chance_of_shares(400, [50] * 10, seed=2)


def test_chance_of_losses_is_that_of_shares_where_a_loss_is_0_or_1():
    found = chance_of_losses([0.0] * 400 + [1.0] * 100, [1] * 500, [50] * 10, seed=1)
    assert found["chance_mean_worst"] == pytest.approx(0.0899, abs=0.003)
    assert chance_of_losses([0.7] * 9, [1] * 9, [3] * 4, seed=1)["chance_best_worst"] == 0.0


def test_more_rows_leave_less_to_chance():
    few, many = (chance_of_shares(0.8 * 10 * n, [n] * 10, seed=1)["chance_mean_worst"] for n in (50, 5000))
    assert many == pytest.approx(few / 10, rel=0.1)


def test_the_interval_of_the_mean_is_that_of_its_clients_alone():
    assert mean_interval(0.5, [0.1, 0.1], (0.0, 1.0)) == pytest.approx((0.3614, 0.6386), abs=1e-4)
    assert mean_interval(0.5, [0.1, None], (0.0, 1.0)) is None
    assert mean_interval(0.05, [0.1], (0.0, 1.0))[0] == 0.0


def prepared(kind, by_client, sizes):
    """A metric on clients whose rows have these scores: client -> list of (nll, tokens, right)."""
    tests = ClientTests({client: [None] * len(rows) for client, rows in by_client.items()}, sizes, lambda rows, _: None)
    metric = kind(client_test_fraction=0.2)
    metric.tests = tests
    columns = {client: np.asarray(rows, dtype=float).T for client, rows in by_client.items()}
    return metric, {client: RowScores(*column) for client, column in columns.items()}


def test_the_accuracy_of_clients_with_its_intervals_is_recorded_client_by_client():
    rights = {0: 9, 1: 8, 2: 4}
    rows = {client: [(0.5, 1, int(n < right)) for n in range(10)] for client, right in rights.items()}
    metric, scores = prepared(ClientAccuracy, rows, {0: 40, 1: 40, 2: 40})
    block = metric.block(metric.result(scores, seed=3))
    assert block["mean_worst"] == pytest.approx(0.3)
    assert block["best_worst"] == pytest.approx(0.5)
    assert block["n"] == 30
    assert block["clients"]["2"] == {"value": 0.4, "n": 10, "ci95": list(wilson(4, 10)), "rows": 40}
    assert block["worst_ci95"] == list(wilson(4, 10))
    assert block["chance_mean_worst"] == chance_of_shares(21, [10] * 3, seed=3)["chance_mean_worst"]
    assert own_scores({"client_accuracy": block, "heldout_loss": {"value": 1.0}}) == {
        "client_accuracy": {0: 0.9, 1: 0.8, 2: 0.4}
    }
    assert "worst 0.4000, gap 0.3000 (chance" in metric.line(block)


def test_the_loss_of_a_client_is_per_token_of_all_its_rows_as_the_held_out_loss():
    rows = {0: [(2.0, 1, 0)] * 5 + [(10.0, 15, 0)], 1: [(1.0, 1, 0)]}
    metric, scores = prepared(ClientLoss, rows, {0: 4, 1: 2})
    block = metric.block(metric.result(scores, seed=3))
    assert block["clients"]["0"]["value"] == pytest.approx(20 / 20)
    assert block["clients"]["0"]["ci95"][0] < 1.0 < block["clients"]["0"]["ci95"][1]
    assert block["clients"]["1"] == {"value": 1.0, "n": 1, "ci95": None, "rows": 2}
    assert block["ci95"] is None  # nothing tells how much the single row of client 1 varies
    assert block["value"] == 1.0
    assert block["best_worst"] == 0.0


def test_an_accuracy_needs_a_task_that_tells_right_from_wrong():
    rows, sizes = {0: ["a row", "another"]}, {0: 3}
    for tells_right, count in ((False, 0), (True, 2)):
        metric = ClientAccuracy(client_test_fraction=0.2)
        metric.tests = ClientTests(rows, sizes, lambda rows, _: None, tells_right=tells_right)
        assert metric.text_count == count
