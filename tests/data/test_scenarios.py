import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.dealing import biased_row_count
from fedbias_plugin.errors import UserError
from fedbias_plugin.registry import names


def biased_shares(scenario, clients, seed, custom=None):
    """What the flags give."""
    shares = None if custom is None else ",".join(map(str, custom))
    return BiasArguments(scenario=scenario, biased_shares=shares).split.shares(clients, seed)


@pytest.mark.parametrize(
    ("scenario", "sorted_shares"),
    [("3B", [1, 1, 1]), ("3C", [0, 0, 0]), ("1B2C", [0, 0, 1]), ("2B1C", [0, 1, 1])],
)
def test_a_three_client_scenario_has_its_roles(scenario, sorted_shares):
    assert sorted(biased_shares(scenario, 3, seed=11)) == sorted_shares


@pytest.mark.parametrize(("scenario", "share"), [("mix-1B2C", 1 / 3), ("mix-2B1C", 2 / 3)])
def test_a_mixed_scenario_gives_every_client_the_same_share(scenario, share):
    assert biased_shares(scenario, 5, seed=3) == [share] * 5


@pytest.mark.parametrize("clients", [3, 5, 10])
def test_three_biased_clients_stay_three_among_more(clients):
    shares = biased_shares("3B", clients, seed=0)
    assert len(shares) == clients
    assert sum(shares) == 3
    assert set(shares) <= {0.0, 1.0}


def test_which_clients_are_poisoned_is_the_same_on_every_machine():
    # Golden values: a change here changes the poisoned client of every published run.
    assert [biased_shares("1B2C", 3, seed).index(1.0) for seed in range(8)] == GOLDEN_1B2C
    shares = biased_shares("3B", 10, seed=2023)
    assert [client for client, share in enumerate(shares) if share] == GOLDEN_3B_OF_10


def test_every_client_is_the_poisoned_one_for_some_seed():
    for clients in (3, 5, 10):
        assert {biased_shares("1B2C", clients, seed).index(1.0) for seed in range(100)} == set(range(clients))


def test_custom_shares_belong_to_the_clients_as_written():
    for seed in range(5):
        assert biased_shares("custom", 4, seed, [1, 0, 0, 0.5]) == [1.0, 0.0, 0.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1B2D", 3, 0), r"'1B2D' is unknown.*Did you mean '1B2C'"),
        (("3B", 2, 0), r"needs at least 3 clients, but --num_clients is 2.*custom"),
        (("custom", 3, 0), r"needs --biased_shares"),
        (("custom", 3, 0, [1, 0]), r"holds 2 shares, but --num_clients is 3"),
        (("custom", 2, 0, [1, 1.5]), r"at least 0 and at most 1, got 1.5"),
        (("custom", 2, 0, [1, float("nan")]), r"at least 0 and at most 1, got nan"),
        (("3C", 3, 0, [0, 0, 0]), r"belongs to --scenario custom"),
    ],
)
def test_a_wrong_scenario_says_what_would_be_right(arguments, message):
    with pytest.raises(UserError, match=message):
        biased_shares(*arguments)


@given(st.sampled_from([name for name in names("split") if name != "custom"]), st.integers(3, 12), st.integers())
def test_shares_are_shares_and_depend_on_nothing_but_their_arguments(scenario, clients, seed):
    shares = biased_shares(scenario, clients, seed)
    assert len(shares) == clients
    assert all(0 <= share <= 1 for share in shares)
    assert shares == biased_shares(scenario, clients, seed)


def test_a_share_is_rounded_to_whole_rows_and_a_half_to_the_even_number():
    assert biased_row_count(1 / 3, 300) == 100
    assert biased_row_count(2 / 3, 300) == 200
    assert biased_row_count(1 / 3, 100) == 33
    assert biased_row_count(2 / 3, 100) == 67
    assert [biased_row_count(0.5, rows) for rows in (1, 3, 5, 7)] == [0, 2, 2, 4]


GOLDEN_1B2C = [2, 2, 1, 2, 1, 0, 2, 1]
GOLDEN_3B_OF_10 = [2, 5, 8]
