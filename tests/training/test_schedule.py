"""Rounds draw what OpenFedLLM draws, and leave the global random state alone."""

import random

import pytest

from fedbias_plugin.errors import UserError
from fedbias_plugin.training.schedule import clients_this_round, cosine_learning_rate, rows_this_round


def test_the_learning_rate_falls_by_a_cosine():
    assert cosine_learning_rate(0, 4, 1.0, 0.0) == 1.0
    assert cosine_learning_rate(1, 3, 1.0, 0.0) == pytest.approx(0.75)
    assert cosine_learning_rate(2, 4, 1.0, 0.2) == pytest.approx(0.6)


def test_draws_are_those_of_a_generator_seeded_with_the_round():
    random.seed(3)
    clients, state = sorted(random.sample(range(10), 4)), random.getstate()
    assert clients_this_round("fedavg", 10, 4, 3) == clients
    random.seed(3)
    rows = random.sample(range(20), 12)
    assert rows_this_round(20, 3, 2, 3, 2) == rows
    random.setstate(state)
    clients_this_round("fedavg", 10, 4, 5)
    assert random.getstate() == state


def test_a_short_client_gives_all_its_rows_once():
    assert sorted(rows_this_round(5, 0, 4, 2, 10)) == [0, 1, 2, 3, 4]


def test_fewer_clients_than_asked_for_all_take_part():
    assert clients_this_round("fedavg", 2, 5, 0) == [0, 1]
    assert clients_this_round("local12", 20, 5, 0) == [12]


def test_a_schedule_seed_changes_the_draws_and_only_it_does():
    drawn = {seed: [clients_this_round("fedavg", 50, 5, r, seed) for r in range(3)] for seed in (1, 2)}
    assert drawn[1] != drawn[2]
    assert drawn[1] == [clients_this_round("fedavg", 50, 5, r, 1) for r in range(3)]
    assert rows_this_round(50, 0, 2, 2, 2, 1) != rows_this_round(50, 0, 2, 2, 2)


def test_no_step_is_refused_with_the_alternative():
    with pytest.raises(UserError, match=r"--max_steps -1 must be at least 1.*--local_epochs"):
        rows_this_round(30, 0, 2, 1, -1)
