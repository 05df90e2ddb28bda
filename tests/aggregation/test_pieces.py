"""Averaging piece by piece gives the bits of averaging whole."""

import pytest
import torch

from fedbias_plugin.aggregation import pieces as module
from fedbias_plugin.aggregation.pieces import flat, pieces
from fedbias_plugin.aggregation.server_optimizer import ServerOptimizer
from fedbias_plugin.aggregation.substitution import weighted_state
from fedbias_plugin.fed_algs import ALGORITHMS
from fedbias_plugin.updates.checks import update_norm

SHAPES = {"matrix": (7, 5), "bias": (3,), "scalar": (), "empty": (0, 4)}


def states(clients=3):
    draws = torch.Generator().manual_seed(1)
    make = lambda: {name: torch.randn(shape, generator=draws) for name, shape in SHAPES.items()}  # noqa: E731
    return make(), {client: make() for client in range(clients)}, {client: make() for client in range(clients)}


def test_pieces_cover_every_entry_once_in_order(monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4)
    tensor = torch.arange(10)
    assert [tensor[piece].tolist() for piece in pieces(tensor)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(pieces(torch.empty(0))) == []
    assert flat(torch.tensor(3.0)).shape == (1,)


@pytest.mark.parametrize("fed_alg", ALGORITHMS)
def test_small_pieces_and_writing_in_place_change_no_bit_of_two_rounds(monkeypatch, fed_alg):
    theta, local, deltas = states()
    counts = {0: 7, 1: 11, 2: 2}
    results = []
    for size, in_place in ((2**18, False), (4, False), (4, True)):
        monkeypatch.setattr(module, "PIECE", size)
        server = ServerOptimizer(fed_alg, num_clients=5)
        state = {name: tensor.clone() for name, tensor in theta.items()}
        for round_idx in range(2):
            given = {name: tensor.clone() for name, tensor in state.items()}
            new = server.aggregate(round_idx, state, local, counts, deltas, into=state if in_place else None)
            if in_place:
                assert all(new[name] is state[name] for name in state)
            else:
                assert all(torch.equal(state[name], given[name]) for name in state)
            state = new
        results.append((state, server.state_dict()["slots"]))
    for state, slots in results[1:]:
        assert all(torch.equal(state[name], results[0][0][name]) for name in SHAPES)
        assert all(torch.equal(slots[slot][name], results[0][1][slot][name]) for slot in slots for name in SHAPES)


def test_a_target_that_is_not_contiguous_is_left_alone(monkeypatch):
    theta = {"matrix": torch.randn(4, 3).t()}
    local = {0: {"matrix": torch.randn(4, 3).t()}}
    new = ServerOptimizer("fedavg", num_clients=1).aggregate(0, theta, local, {0: 2}, into=theta)
    assert torch.equal(new["matrix"], local[0]["matrix"])
    assert new["matrix"] is not theta["matrix"]


def test_half_precision_is_averaged_by_rows_that_its_numbers_cannot_hold():
    theta = {"weight": torch.zeros(2, dtype=torch.bfloat16)}
    local = {
        client: {"weight": torch.full((2,), value, dtype=torch.bfloat16)} for client, value in ((0, 1.0), (1, 3.0))
    }
    new = ServerOptimizer("fedavg", num_clients=2).aggregate(0, theta, local, {0: 1001, 1: 1001})
    assert torch.allclose(new["weight"].float(), torch.tensor([2.0, 2.0]), rtol=0.01)


def test_substitution_and_norm_do_not_depend_on_the_pieces(monkeypatch):
    theta, local, _ = states()
    factors = {0: 0.5, 1: 0.2, 2: 0.3}
    whole, norm = weighted_state(theta, local, factors), update_norm(theta, local[1])
    monkeypatch.setattr(module, "PIECE", 4)
    parts = weighted_state(theta, local, factors)
    assert all(torch.equal(whole[name], parts[name]) for name in SHAPES)
    assert update_norm(theta, local[1]) == pytest.approx(norm, rel=1e-12)
    by_hand = torch.cat([(local[1][name] - theta[name]).flatten().double() for name in SHAPES]).norm()
    assert norm == pytest.approx(float(by_hand), rel=1e-6)
