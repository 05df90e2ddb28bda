"""Global random states, stored as JSON."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from fedbias_plugin.training.random_states import preserved_random_states, random_states, restore_random_states


def draws() -> tuple[list[float], list[float], list[float]]:
    return [random.gauss(0, 1) for _ in range(3)], np.random.normal(size=3).tolist(), torch.randn(3).tolist()


def test_draws_go_on_where_they_were_after_a_trip_through_json():
    with preserved_random_states():
        draws()  # an odd number of normal draws leaves Python and NumPy with one to spare
        stored = json.loads(json.dumps(random_states()))
        expected = draws()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        assert draws() != expected
        restore_random_states(stored)
        assert draws() == expected


def test_a_block_leaves_the_states_as_they_were():
    before = random_states()
    with preserved_random_states():
        draws()
    assert random_states() == before
