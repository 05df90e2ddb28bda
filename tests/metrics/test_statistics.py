"""Statistics against hand-computed values and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.metrics.statistics import (
    bootstrap_ci,
    bootstrap_means,
    holm,
    jackknife_interval,
    macro_noise_floor,
    mcnemar,
    noise_floor,
    paired_bootstrap,
    paired_t,
    percentile_interval,
    standard_error,
    t_interval,
    term_noise_floor,
)

FEW = [50.0, 60.0, 70.0, 60.0, 60.0]
"""Mean 60, standard deviation sqrt(200 / 4) = 7.0711, standard error 3.1623; t(4) at 97.5% is 2.7764 in any table."""


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
    for compare in (mcnemar, paired_t, lambda first, second: paired_bootstrap(first, second, seed=0)):
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


def test_an_interval_over_terms_is_student_s_t():
    assert standard_error(FEW) == pytest.approx(3.1623, abs=1e-4)
    assert t_interval(FEW) == pytest.approx((60 - 2.7764 * 3.1623, 60 + 2.7764 * 3.1623), abs=1e-3)
    assert standard_error([60.0]) is None


def test_fewer_than_five_terms_have_no_interval():
    assert t_interval(FEW[:4]) is None
    assert jackknife_interval(60.0, FEW[:4]) is None
    assert paired_t(FEW[:4], FEW[1:]).ci95 is None


def test_an_interval_never_leaves_what_is_possible():
    assert t_interval([100.0, 100.0, 100.0, 100.0, 60.0])[1] == 100.0
    assert t_interval([0.0, 0.0, 0.0, 0.0, 40.0])[0] == 0.0
    assert paired_t([0.0] * 5, [100.0, 100.0, 100.0, 100.0, 60.0]).ci95[1] == 100.0
    assert paired_t([100.0, 100.0, 100.0, 100.0, 60.0], [0.0] * 5).ci95[0] == -100.0


def test_the_jackknife_of_a_mean_is_its_t_interval():
    without_one = [(sum(FEW) - value) / 4 for value in FEW]
    assert jackknife_interval(60.0, without_one) == pytest.approx(t_interval(FEW))


def test_a_paired_t_test_gives_the_hand_computed_numbers():
    """Differences -10, -10, -20, 0, -20: mean -12, sd sqrt(280 / 4) = 8.3666, error 3.7417, t = -3.2071 with 4 df.

    scipy.stats.ttest_rel gives p = 0.032678.
    """
    result = paired_t(FEW, [40.0, 50.0, 50.0, 60.0, 40.0])
    assert (result.difference, result.groups) == (-12.0, 5)
    assert result.ci95 == pytest.approx((-12 - 2.7764 * 3.7417, -12 + 2.7764 * 3.7417), abs=1e-3)
    assert result.p_value == pytest.approx(0.032678, abs=1e-6)


def test_terms_that_all_differ_alike_are_judged_by_their_signs():
    assert paired_t(FEW, [value - 10 for value in FEW]).p_value == pytest.approx(2**-4)
    assert paired_t(FEW, FEW).p_value == 1.0
    assert paired_t([60.0], [50.0]).p_value == 1.0


def some_terms(random, terms, biased=0.5, like=4.0, clusters=32):
    """SS of target terms that differ among themselves, percent: their true shares are of a beta distribution."""
    shares = random.beta(2 * like * biased, 2 * like * (1 - biased), size=terms)
    return 100.0 * random.binomial(clusters, shares) / clusters


@pytest.mark.parametrize("biased", [0.5, 0.65])
@pytest.mark.parametrize("terms", [5, 8, 12, 16, 30])
def test_intervals_over_few_terms_cover_the_truth_in_93_to_97_of_100(terms, biased):
    random = np.random.default_rng(terms)
    intervals = [t_interval(some_terms(random, terms, biased)) for _ in range(2000)]
    covered = np.mean([low <= 100 * biased <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.97


def test_the_percentile_bootstrap_over_few_terms_did_not():
    random = np.random.default_rng(3)
    samples = [some_terms(random, 12) for _ in range(600)]
    intervals = [bootstrap_ci(sample, seed=index, resamples=500) for index, sample in enumerate(samples)]
    assert np.mean([low <= 50.0 <= high for low, high in intervals]) < 0.93


@pytest.mark.parametrize("terms", [5, 12, 16])
def test_runs_that_differ_by_chance_are_told_apart_in_about_5_of_100(terms):
    """The bootstrap's p was below 0.05 in 7 to 10 of 100 with 16 terms."""
    random = np.random.default_rng(terms)
    found = [paired_t(some_terms(random, terms), some_terms(random, terms)) for _ in range(2000)]
    rejected = np.mean([one.p_value < 0.05 for one in found])
    assert 0.035 <= rejected <= 0.065
    assert 0.935 <= np.mean([one.ci95[0] <= 0.0 <= one.ci95[1] for one in found]) <= 0.965


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


def test_the_noise_floor_over_terms_is_their_standard_error_folded():
    assert term_noise_floor(FEW, [400] * 5) == pytest.approx(math.sqrt(2 / math.pi) * 3.1623, abs=1e-4)
    assert term_noise_floor([100.0] * 16, [32] * 16) == macro_noise_floor([32] * 16)
    assert term_noise_floor([100.0], [32]) == macro_noise_floor([32])


@pytest.mark.parametrize("terms", [4, 16])
def test_the_noise_floor_over_terms_is_what_an_unbiased_model_whose_terms_differ_shows(terms):
    """That of independent clusters is 3.5 points with 4 terms of 32, where such a model shows 7.4."""
    random = np.random.default_rng(terms)
    drawn = [some_terms(random, terms) for _ in range(4000)]
    shown = np.mean([abs(scores.mean() - 50.0) for scores in drawn])
    stated = np.mean([term_noise_floor(scores, [32] * terms) for scores in drawn])
    assert stated == pytest.approx(shown, rel=0.08)
    assert macro_noise_floor([32] * terms) < 0.5 * shown
