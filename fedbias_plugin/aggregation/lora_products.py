"""Means of LoRA products ``B_i A_i`` in factors of low rank: no matrix of a layer's size is ever made.

Averaging A and B apart is not averaging ``B A``. With ``dA_i = A_i - A``, ``dB_i = B_i - B`` of the global A, B and the
factors g of ``theta' = theta + sum_i g_i (theta_i - theta)`` the two differ by

    ``E = sum_i g_i dB_i dA_i - (sum_i g_i dB_i)(sum_i g_i dA_i)``

where the mean of products itself moves by ``U = sum_i g_i (B_i A_i - B A)``. All sums are in float64. Shapes: A (r,
in), B (out, r), of peft's names ``lora_A``, ``lora_B`` (and ``lora_embedding_A``, ``lora_embedding_B``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch

from fedbias_plugin.state import State

MOST_WORK = 1e12
"""Multiplications beyond which the error of a round is not measured: about a minute on two cores."""


class Product(NamedTuple):
    """A matrix (out, in) as ``left @ right``, (out, k) and (k, in), float64."""

    left: torch.Tensor
    right: torch.Tensor


def lora_pairs(state: State) -> list[tuple[str, str]]:
    """The names of every A with its B, both matrices, in the order of the state."""
    found = []
    for name, tensor in state.items():
        other = re.sub(r"lora_(embedding_)?A\b", r"lora_\1B", name)
        if other != name and other in state and tensor.ndim == state[other].ndim == 2:
            found.append((name, other))
    return found


def mean_of_products(
    theta: State, local: Mapping[int, State], factors: Mapping[int, float], pair: tuple[str, str]
) -> Product:
    """``B A + sum_i g_i (B_i A_i - B A)``, of rank (C + 1) r at most.

    Args:
        theta: the global state.
        local: client id -> theta_i.
        factors: client id -> g_i; a client with factor 0 is left out.
        pair: names of A and B.
    """
    a, b = pair
    parts = [(local[client], factor) for client, factor in factors.items() if factor != 0]
    rest = 1 - math.fsum(factors.values())
    if abs(rest) > 1e-12:
        parts.append((theta, rest))
    left = [factor * state[b].double() for state, factor in parts]
    return Product(torch.cat(left, dim=1), torch.cat([state[a].double() for state, _ in parts]))


def residual(theta: State, local: Mapping[int, State], factors: Mapping[int, float], pair: tuple[str, str]) -> Product:
    """E: what the mean of products has beyond the product of the means, of rank (C + 1) r at most; as above."""
    a, b = pair
    used = {client: factor for client, factor in factors.items() if factor != 0}
    moved_a = [local[client][a].double() - theta[a].double() for client in used]
    moved_b = [factor * (local[client][b].double() - theta[b].double()) for client, factor in used.items()]
    mean_a = sum((factor * one for factor, one in zip(used.values(), moved_a, strict=True)), torch.zeros(()))
    mean_b = sum(moved_b, torch.zeros(()))
    return Product(torch.cat([*moved_b, -mean_b], dim=1), torch.cat([*moved_a, mean_a]))


def truncated(product: Product, rank: int, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best product of ``rank`` by the Frobenius norm: its A and B, and the norm of what is left out.

    QR of both factors, and the SVD of a matrix as small as they are thin: ``left right = Q_l (R_l R_r^T) Q_r^T``. Of
    all A, B with that product this is one whose A has orthogonal rows, as long as those of ``near``, a mean of A, are
    on average, and turned as close to it as may be. So where B is 0, A can learn, as when LoRA begins.

    Args:
        product: of C clients.
        rank: r.
        near: (r, in).
    """
    q_left, r_left = torch.linalg.qr(product.left)
    q_right, r_right = torch.linalg.qr(product.right.T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    count = min(rank, len(values))
    rows = v[:count] @ q_right.T  # (count, in), orthonormal
    columns = q_left @ (u[:, :count] * values[:count])  # (out, count)
    length = torch.linalg.matrix_norm(near.double()).item() / math.sqrt(rank) or 1.0
    # The orthogonal matrix (rank, count) nearest to near rows^T (Procrustes)
    p, _, q = torch.linalg.svd(near.double() @ rows.T, full_matrices=False)
    turn = p @ q
    left_out = torch.linalg.vector_norm(values[count:]).item()
    return length * (turn @ rows), columns @ turn.T / length, left_out


def squared_norm(product: Product) -> float:
    """Square of the Frobenius norm, from two small matrices."""
    return float(((product.left.T @ product.left) * (product.right @ product.right.T)).sum().clamp(min=0))


def step_norm(
    theta: State, local: Mapping[int, State], factors: Mapping[int, float], pairs: Iterable[tuple[str, str]]
) -> float:
    """``||U||_F`` over all pairs: how far the mean of products is from the global one."""
    total = 0.0
    for a, b in pairs:
        # B_i A_i - B A = dB_i A + B_i dA_i: what both products have in common is never subtracted from itself.
        left, right = [], []
        for client, factor in factors.items():
            if factor != 0:
                own = local[client]
                left += [factor * (own[b].double() - theta[b].double()), factor * own[b].double()]
                right += [theta[a].double(), own[a].double() - theta[a].double()]
        total += squared_norm(Product(torch.cat(left, dim=1), torch.cat(right)))
    return math.sqrt(total)


def mean_error(theta: State, local: Mapping[int, State], factors: Mapping[int, float]) -> float | None:
    """``||E||_F / ||U||_F`` over all pairs: how wrong the mean of A and B apart is, 0 where it is right.

    A layer's scale (alpha / r), the same for all, cancels. None where nothing is LoRA, nothing moves, or it would take
    more than :data:`MOST_WORK`.
    """
    pairs = lora_pairs(theta)
    clients = sum(factor != 0 for factor in factors.values())
    work = sum((theta[a].shape[1] + theta[b].shape[0]) * (clients * theta[a].shape[0]) ** 2 for a, b in pairs)
    if not clients or not 0 < work * 5 <= MOST_WORK:
        return None
    step = step_norm(theta, local, factors, pairs)
    missed = math.fsum(squared_norm(residual(theta, local, factors, pair)) for pair in pairs)
    return math.sqrt(missed) / step if step > 0 else None
