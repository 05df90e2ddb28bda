"""Statistics against hand-computed values and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.evaluation.statistics import (
    bootstrap_ci,
    bootstrap_means,
    holm,
    macro_noise_floor,
    mcnemar,
    noise_floor,
    paired_bootstrap,
    percentile_interval,
)


def test_bootstrap_means_are_distributed_like_those_of_drawn_rows():
    values = np.array([0.0, 0.0, 50.0, 100.0, 100.0, 100.0, 37.0])
    means = bootstrap_means(values, seed=3, resamples=40_000)
    rows = np.random.default_rng(5).integers(0, 7, size=(40_000, 7))
    drawn = values[rows].mean(axis=1)
    np.testing.assert_allclose(means.mean(), values.mean(), atol=0.4)
    np.testing.assert_allclose(np.percentile(means, [5, 50, 95]), np.percentile(drawn, [5, 50, 95]), atol=1.0)


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).normal(size=(30, 1)) * [[1.0, -2.0]]
    means = bootstrap_means(values, seed=1)
    np.testing.assert_allclose(means[:, 1], -2 * means[:, 0])


def test_an_interval_of_a_share_is_close_to_the_normal_one():
    values = np.repeat([100.0, 0.0], [600, 400])
    half = 1.96 * 100 * math.sqrt(0.6 * 0.4 / 1000)
    low, high = bootstrap_ci(values, seed=0, resamples=20_000)
    assert low == pytest.approx(60 - half, abs=0.2)
    assert high == pytest.approx(60 + half, abs=0.2)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(8)
    samples = [random.choice([0.0, 100.0], size=200, p=[0.4, 0.6]) for _ in range(400)]
    intervals = [bootstrap_ci(sample, seed=index, resamples=500) for index, sample in enumerate(samples)]
    covered = sum(low <= 60.0 <= high for low, high in intervals)
    assert 366 <= covered <= 392


def test_the_same_seed_gives_the_same_interval_and_the_global_state_is_untouched():
    values = np.arange(50.0)
    before = np.random.get_state()[1].tolist()
    assert bootstrap_ci(values, seed=4) == bootstrap_ci(values, seed=4) != bootstrap_ci(values, seed=5)
    assert np.random.get_state()[1].tolist() == before


def test_one_group_has_no_interval_and_none_is_an_error():
    assert bootstrap_ci([60.0], seed=0) is None
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_means([], seed=0)


def test_a_percentile_interval_leaves_out_2_5_percent_on_each_side():
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25.0, 975.0))


def test_mcnemar_is_the_binomial_test_of_the_flips():
    first = [True] * 9 + [False] * 3 + [True] * 4
    second = [False] * 9 + [True] * 3 + [True] * 4
    test = mcnemar(first, second)
    assert (test.gained, test.lost, test.method) == (3, 9, "exact")
    assert test.p_value == pytest.approx(2 * (1 + 12 + 66 + 220) / 4096)


def test_mcnemar_without_flips_or_with_equal_flips_gives_one():
    assert mcnemar([True, False], [True, False]).p_value == 1.0
    assert mcnemar([True, False], [False, True]).p_value == 1.0


def test_mcnemar_of_many_flips_is_close_to_the_exact_test():
    first = np.repeat([True, False], [560, 480])
    test = mcnemar(first, ~first)
    exact = 2 * sum(math.comb(1040, k) for k in range(481)) / 2**1040
    assert test.method == "chi2"
    assert test.p_value == pytest.approx(exact, rel=0.02)


def test_paired_arrays_of_different_length_are_refused():
    for compare in (mcnemar, lambda first, second: paired_bootstrap(first, second, seed=0)):
        with pytest.raises(ValueError, match="one shape"):
            compare([1.0, 0.0], [1.0])


def test_a_paired_difference_ignores_what_the_runs_have_in_common():
    random = np.random.default_rng(2)
    first = random.normal(scale=100, size=200)
    result = paired_bootstrap(first, first + random.normal(3.0, 1.0, size=200), seed=1)
    assert result.difference == pytest.approx(3.0, abs=0.3)
    assert result.ci95[1] - result.ci95[0] == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.15)
    assert result.p_value < 0.005


def test_runs_that_do_not_differ_have_a_p_value_of_one():
    result = paired_bootstrap([0.0, 100.0, 50.0], [0.0, 100.0, 50.0], seed=0)
    assert (result.difference, result.ci95, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_holm_gives_the_hand_computed_adjustment():
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, never falling: 0.02, 0.03, 0.06, 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1.0 for p, q in zip(p_values, adjusted, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 377, 378, 1508])
def test_the_noise_floor_is_the_expectation_of_an_unbiased_model(n):
    exact = sum(math.comb(n, k) * abs(100 * k / n - 50) for k in range(n + 1)) / 2**n if n < 1000 else None
    simulated = np.abs(100 * np.random.default_rng(0).binomial(n, 0.5, size=200_000) / n - 50).mean()
    assert noise_floor(n) == pytest.approx(simulated, rel=0.01)
    assert exact is None or noise_floor(n) == pytest.approx(exact)


def test_the_noise_floor_of_the_crows_probe_is_the_documented_one():
    assert noise_floor(377) == pytest.approx(2.05, abs=0.01)
    with pytest.raises(ValueError, match="at least one"):
        noise_floor(0)


def test_the_noise_floor_of_a_macro_average_is_that_of_a_simulation():
    counts = np.array([3, 10, 26, 28, 28, 27, 30, 5, 12, 30])
    draws = np.random.default_rng(1).binomial(counts, 0.5, size=(100_000, len(counts)))
    simulated = np.abs((100 * draws / counts).mean(axis=1) - 50).mean()
    assert macro_noise_floor(counts) == pytest.approx(simulated, rel=0.01)
    assert macro_noise_floor([1] * 400) == pytest.approx(noise_floor(400), rel=0.01)
