"""Means of products in small factors, against whole matrices."""

from __future__ import annotations

import pytest
import torch

from fedbias_plugin.aggregation.lora_products import (
    Product,
    lora_pairs,
    mean_error,
    mean_of_products,
    norms,
    residual,
    truncated,
)

A, B = "q.lora_A.weight", "q.lora_B.weight"
PAIR = (A, B)
FACTORS = [{0: 0.5, 1: 0.3, 2: 0.2}, {0: 0.1, 1: 0.6, 2: 0.0}, {0: 1.0, 1: 1.0, 2: 1.0}]


def round_of(clients=3, rank=2, out=7, inner=5, seed=0):
    """Theta and the clients' states, each moved from it."""
    draws = torch.Generator().manual_seed(seed)
    theta = {A: torch.randn(rank, inner, generator=draws), B: torch.randn(out, rank, generator=draws)}
    local = {c: {n: t + 0.3 * torch.randn(t.shape, generator=draws) for n, t in theta.items()} for c in range(clients)}
    return theta, local


def product(state):
    return state[B].double() @ state[A].double()


def mean(theta, local, factors):
    """The mean of products, as a whole matrix."""
    return product(theta) + sum(g * (product(local[c]) - product(theta)) for c, g in factors.items())


def apart(theta, local, factors):
    """A and B averaged apart, in float64."""
    return {
        n: t.double() + sum(g * (local[c][n].double() - t.double()) for c, g in factors.items())
        for n, t in theta.items()
    }


@pytest.mark.parametrize("factors", FACTORS)
def test_the_mean_of_products_and_what_the_usual_mean_lacks_are_those_of_whole_matrices(factors):
    theta, local = round_of()
    expected, usual = mean(theta, local, factors), product(apart(theta, local, factors))
    found, rest = mean_of_products(theta, local, factors, PAIR), residual(theta, local, factors, PAIR)
    assert torch.allclose(found.left @ found.right, expected, atol=1e-12)
    assert torch.allclose(usual + rest.left @ rest.right, expected, atol=1e-12)
    missed = torch.linalg.matrix_norm(expected - usual)
    assert norms(theta, local, factors, [PAIR])[0] == pytest.approx(float(missed), rel=1e-9)
    error = missed / torch.linalg.matrix_norm(expected - product(theta))
    assert mean_error(theta, local, factors) == pytest.approx(float(error), rel=1e-9)


def test_with_the_full_rank_allowed_the_truncated_product_is_the_mean_of_products_to_1e_6():
    theta, local = round_of(rank=2, out=20, inner=16)
    whole = mean_of_products(theta, local, FACTORS[0], PAIR)
    near = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    a, b, left_out = truncated(whole, 6, near)
    assert torch.allclose(b.float() @ a.float(), mean(theta, local, FACTORS[0]).float(), atol=1e-6, rtol=1e-6)
    assert left_out < 1e-12


@pytest.mark.parametrize(("out", "inner"), [(20, 16), (5, 30), (30, 5)])
def test_the_truncated_product_is_the_best_of_its_rank_and_with_the_rest_it_is_the_mean_to_1e_6(out, inner):
    theta, local = round_of(rank=2, out=out, inner=inner)
    whole, near = mean_of_products(theta, local, FACTORS[0], PAIR), apart(theta, local, FACTORS[0])[A]
    a, b, left_out = truncated(whole, 2, near)
    expected = mean(theta, local, FACTORS[0])
    u, s, v = torch.linalg.svd(expected)
    best = u[:, :2] @ torch.diag(s[:2]) @ v[:2]
    assert torch.allclose(b @ a, best, atol=1e-10)
    assert left_out == pytest.approx(float(s[2:].square().sum().sqrt()))
    rest = Product(torch.cat([whole.left, -b], dim=1), torch.cat([whole.right, a]))
    assert torch.allclose(b @ a + rest.left @ rest.right, expected, atol=1e-6)
    # The rows of A are orthogonal, as long as the mean's, and no turn of them is nearer to it.
    length = torch.linalg.matrix_norm(near) / 2**0.5
    assert torch.allclose(a @ a.T, length**2 * torch.eye(2, dtype=torch.float64), atol=1e-9)
    for angle in torch.linspace(0.1, 6.2, 20, dtype=torch.float64):
        turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
        assert torch.linalg.matrix_norm(turn @ a - near) >= torch.linalg.matrix_norm(a - near)


def test_a_direction_in_which_nothing_was_learned_keeps_an_a_that_can_learn():
    theta = {A: torch.randn(4, 9, generator=torch.Generator().manual_seed(0)), B: torch.zeros(6, 4)}
    local = {c: {A: theta[A].clone(), B: torch.zeros(6, 4)} for c in range(2)}
    for client in local:
        local[client][B][0, 1] = 1.0 + client  # only one direction of four
    a, b, _ = truncated(mean_of_products(theta, local, {0: 0.5, 1: 0.5}, PAIR), 4, theta[A])
    assert torch.linalg.vector_norm(a, dim=1).min() > 1
    assert torch.allclose(b @ a, 1.5 * (torch.eye(6, 4)[:, :1] @ theta[A][1:2]).double(), atol=1e-9)


def test_there_is_no_error_where_all_clients_agree_or_only_b_moves_and_none_is_told_where_nothing_does():
    theta, local = round_of(clients=1)
    same = {0: local[0], 1: local[0]}
    assert mean_error(theta, same, {0: 0.5, 1: 0.5}) < 1e-6
    theta, local = round_of()
    only_b = {client: {**state, A: theta[A]} for client, state in local.items()}
    assert mean_error(theta, only_b, FACTORS[0]) < 1e-6
    assert mean_error(theta, {0: theta, 1: theta}, {0: 0.5, 1: 0.5}) is None
    assert mean_error({"w": torch.ones(3, 3)}, {0: {"w": torch.zeros(3, 3)}}, {0: 1.0}) is None


def test_every_a_has_its_b_embeddings_too_and_what_is_no_pair_is_left_out():
    names = ["l.lora_A.weight", "l.lora_B.weight", "e.lora_embedding_A", "e.lora_embedding_B", "c.lora_A.weight"]
    state = {name: torch.zeros(2, 2) for name in names} | {"score.weight": torch.zeros(2)}
    state |= {"conv.lora_A.weight": torch.zeros(2, 2, 3, 3), "conv.lora_B.weight": torch.zeros(2, 2, 1, 1)}
    assert lora_pairs(state) == [("l.lora_A.weight", "l.lora_B.weight"), ("e.lora_embedding_A", "e.lora_embedding_B")]
