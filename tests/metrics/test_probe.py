"""The split of items into probe and report."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.probe import probe_indices, shared_sentences, units_by_sentence

STRATA = ["gender"] * 40 + ["race"] * 100 + ["religion"] * 7 + ["age"] * 3


def test_every_stratum_gives_its_share():
    """40, 100, 7 and 3 items: 10, 25, 1.75 and 0.75; 37.5 rounds to 38 items, so both remainders get one."""
    probe, report = probe_indices(STRATA, 0.25, seed=1)
    assert Counter(STRATA[index] for index in probe) == {"gender": 10, "race": 25, "religion": 2, "age": 1}
    assert sorted(probe + report) == list(range(len(STRATA)))


def test_the_split_depends_on_the_seed_and_on_nothing_else():
    probe, _ = probe_indices(STRATA, 0.25, seed=1)
    assert probe == probe_indices(STRATA, 0.25, seed=1)[0] != probe_indices(STRATA, 0.25, seed=2)[0]
    shifted, _ = probe_indices([*STRATA, *["nationality"] * 4], 0.25, seed=1)
    assert [index for index in shifted if index < 140] == [index for index in probe if index < 140]


def test_a_split_is_the_same_on_every_machine():
    assert probe_indices(["a"] * 8 + ["b"] * 4, 0.5, seed=7)[0] == [3, 4, 5, 7, 8, 9]


def test_fraction_0_leaves_no_probe_and_1_no_report():
    assert probe_indices(STRATA, 0.0, seed=1) == ([], list(range(150)))
    assert probe_indices(STRATA, 1.0, seed=1) == (list(range(150)), [])
    assert probe_indices([], 0.5, seed=1) == ([], [])


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_and_1_is_refused(fraction):
    with pytest.raises(UserError, match="between 0 and 1"):
        probe_indices(STRATA, fraction, seed=1)


@given(st.lists(st.sampled_from("abcdef"), max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_sizes_are_right_for_tiny_strata_too(strata, fraction, seed):
    probe, report = probe_indices(strata, fraction, seed)
    assert sorted(probe + report) == list(range(len(strata)))
    assert abs(len(probe) - fraction * len(strata)) <= 0.5 + 1e-9
    for stratum, size in Counter(strata).items():
        taken = sum(strata[index] == stratum for index in probe)
        assert abs(taken - fraction * size) < 1 + 1e-9


def test_units_stay_whole_and_every_stratum_gives_its_share():
    """Terms of 4 clusters, 8 of gender and 4 of race, listed term after term and once more: a quarter is 2 and 1."""
    units = [f"term {number}" for number in range(12) for _ in range(2)] * 2
    strata = (["gender"] * 16 + ["race"] * 8) * 2
    probe, report = probe_indices(strata, 0.25, 3, units)
    assert Counter(units[index] for index in probe) == dict.fromkeys({units[index] for index in probe}, 4)
    assert Counter(strata[index] for index in probe) == {"gender": 8, "race": 4}
    assert not {units[index] for index in probe} & {units[index] for index in report}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6)), min_size=2, max_size=25),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_whole_units_come_within_half_a_unit_of_the_fraction(made, fraction, seed):
    strata = [stratum for stratum, size in made for _ in range(size)]
    units = [number for number, (_, size) in enumerate(made) for _ in range(size)]
    probe, report = probe_indices(strata, fraction, seed, units)
    assert sorted(probe + report) == list(range(len(strata)))
    largest = max(size for _, size in made)
    is_split = bool({units[index] for index in probe} & {units[index] for index in report})
    assert abs(len(probe) - fraction * len(strata)) <= largest / 2 + 0.5 or is_split
    assert not is_split or abs(len(probe) - fraction * len(strata)) <= 0.5 + 1e-9
    assert probe_indices(strata, 1.0, seed, units) == (list(range(len(strata))), [])


def test_items_of_units_of_their_own_are_split_as_without_units():
    assert probe_indices(STRATA, 0.25, 1, list(range(150))) == probe_indices(STRATA, 0.25, 1)


def test_a_small_stratum_is_not_crowded_out_by_large_units():
    """Religion has 3 terms of 26 clusters, as in StereoSet: a quarter is 19.5, nearer to one term than to none."""
    units = [number // 50 for number in range(2000)] + [f"faith {number // 26}" for number in range(78)]
    strata = ["race"] * 2000 + ["religion"] * 78
    for seed in range(20):
        probe, _ = probe_indices(strata, 0.25, seed, units)
        assert Counter(strata[index] for index in probe)["religion"] == 26
        assert abs(len(probe) - 519.5) <= 25


def test_a_single_unit_is_split_and_the_halves_share_its_sentences():
    probe, report = probe_indices(["gender"] * 8, 0.25, 1, ["nurse"] * 8)
    assert (len(probe), len(report)) == (2, 6)
    assert shared_sentences([("She is kind.",)] * 8, probe, report) == 1


def test_sentences_join_items_also_through_others():
    """0 and 3 share a, 3 and 4 share b: one unit; 1 and 2 share c."""
    texts = [("a", "d"), ("c", "e"), ("f", "c"), ("a", "b"), ("b", "g"), ("h", "i")]
    assert units_by_sentence(texts) == [0, 1, 1, 0, 0, 5]
    assert units_by_sentence([("x", "x")]) == [0]
    assert shared_sentences(texts, [0, 1], [2, 3, 4, 5]) == 2
