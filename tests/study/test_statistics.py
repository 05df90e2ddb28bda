"""Means, t intervals and paired tests over seeds, against values computed by hand or with other formulas."""

from __future__ import annotations

import math
import random

import pytest

from fedbias_plugin.study.statistics import SeedComparison, Spread, compare_seeds, correct, spread

# Student's t, two-sided 95%, from printed tables: 1, 2 and 4 degrees of freedom.
T_95 = {2: 12.706, 3: 4.303, 5: 2.776}


@pytest.mark.parametrize("values", [[1.0, 3.0], [2.0, 4.0, 9.0], [1.5, 2.5, 2.0, 8.0, -1.0]])
def test_the_interval_is_mean_plus_minus_t_times_the_standard_error(values):
    found = spread(values)
    n, mean = len(values), sum(values) / len(values)
    variance = sum(value * value for value in values) - n * mean * mean
    sd = math.sqrt(variance / (n - 1))
    half = T_95[n] * sd / math.sqrt(n)
    assert found.mean == pytest.approx(mean)
    assert found.sd == pytest.approx(sd)
    assert found.ci95 == pytest.approx((mean - half, mean + half), rel=1e-3)
    assert found.n == n


def test_one_seed_has_a_mean_and_nothing_else():
    assert spread([4.0]) == Spread(4.0, None, None, 1)
    assert spread([]) is None


def test_equal_values_have_an_interval_of_one_point():
    assert spread([0.1 + 0.2, 0.3, 0.3]) == Spread(pytest.approx(0.3), 0.0, pytest.approx((0.3, 0.3)), 3)


def test_seeds_that_only_one_arm_has_are_not_compared():
    found = compare_seeds({1: 10.0, 2: 12.0, 3: 50.0}, {2: 11.0, 1: 8.0, 9: 0.0})
    assert (found.difference.mean, found.difference.n) == (-1.5, 2)
    assert compare_seeds({1: 1.0}, {2: 2.0}) is None


def test_the_p_value_of_two_seeds_by_hand():
    # One degree of freedom is Cauchy: p = 1 - 2 atan(|t|) / pi; differences -2, -1: mean -1.5, se 0.5, t = -3.
    found = compare_seeds({1: 10.0, 2: 12.0}, {1: 8.0, 2: 11.0})
    assert found.p_value == pytest.approx(1 - 2 * math.atan(3.0) / math.pi)


def test_the_p_value_of_three_seeds_by_hand():
    # Two degrees of freedom: p = 1 - |t| / sqrt(t^2 + 2); differences 1, 2, 3: mean 2, se 1 / sqrt(3), t = 2 sqrt(3).
    found = compare_seeds({1: 0.0, 2: 0.0, 3: 0.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    t = 2 * math.sqrt(3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_the_p_value_is_below_5_percent_exactly_where_the_interval_leaves_out_zero():
    draw = random.Random(1)
    seen = set()
    for _ in range(200):
        values = {seed: draw.gauss(1.0, 1.0) for seed in range(4)}
        found = compare_seeds(dict.fromkeys(values, 0.0), values)
        low, high = found.difference.ci95
        assert (found.p_value < 0.05) == (not low <= 0 <= high)
        seen.add(found.p_value < 0.05)
    assert seen == {True, False}


@pytest.mark.parametrize("second", [{1: 8.0}, {1: 8.0, 2: 8.0, 3: 8.0}])
def test_one_seed_or_equal_differences_have_no_p_value(second):
    assert compare_seeds({1: 9.0, 2: 9.0, 3: 9.0}, second).p_value is None


def test_holm_counts_only_comparisons_with_a_p_value():
    def tested(p):
        return SeedComparison(Spread(0.0, 1.0, (-1.0, 1.0), 2), p)

    found = [tested(0.03), None, tested(0.01), tested(None)]
    correct(found)
    assert [one and one.p_holm for one in found] == [0.03, None, 0.02, None]
