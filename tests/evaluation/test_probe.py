"""The split of items into probe and report."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.probe import probe_indices

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
