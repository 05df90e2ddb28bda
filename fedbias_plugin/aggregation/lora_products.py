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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from fedbias_plugin.state import State

MOST_WORK = 1e12
"""Multiplications beyond which the error of a round is not measured: a minute or two on two cores."""


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
    left, right = torch.geqrf(product.left), torch.geqrf(product.right.T)
    u, values, v = torch.linalg.svd(_upper(left) @ _upper(right).T, full_matrices=False)
    count = min(rank, len(values))
    rows = _times(right, v[:count].T).T  # (count, in), orthonormal
    columns = _times(left, u[:, :count] * values[:count])  # (out, count)
    length = torch.linalg.matrix_norm(near.double()).item() / math.sqrt(rank) or 1.0
    # The orthogonal matrix (rank, count) nearest to near rows^T (Procrustes)
    p, _, q = torch.linalg.svd(near.double() @ rows.T, full_matrices=False)
    turn = p @ q
    left_out = torch.linalg.vector_norm(values[count:]).item()
    return length * (turn @ rows), columns @ turn.T / length, left_out


def _upper(factored: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """R of what ``geqrf`` gave."""
    return factored[0][: factored[0].shape[1]].triu()


def _times(factored: tuple[torch.Tensor, torch.Tensor], small: torch.Tensor) -> torch.Tensor:
    """``Q small``, where Q itself is never made."""
    padded = small.new_zeros(factored[0].shape[0], small.shape[1])
    padded[: len(small)] = small
    return torch.ormqr(*factored, padded)


def norms(
    theta: State, local: Mapping[int, State], factors: Mapping[int, float], pairs: Sequence[tuple[str, str]]
) -> tuple[float, float] | None:
    """``||E||_F`` and ``||U||_F`` over all ``pairs``; None where they would take more than :data:`MOST_WORK`.

    Both are ``B K A`` of the same stacked dA_1, ..., dA_C, A and dB_1, ..., dB_C, B with a small K each, so that two
    matrices of inner products, as large as all ranks together, give their norms.
    """
    used = {client: factor for client, factor in factors.items() if factor != 0}
    columns = [(theta[a].shape[0] * (len(used) + 1), theta[a].shape[1] + theta[b].shape[0]) for a, b in pairs]
    if sum(size * stacked**2 for stacked, size in columns) > MOST_WORK:
        return None
    g = torch.tensor(list(used.values()), dtype=torch.float64)
    missed, moved = torch.zeros(2, len(g) + 1, len(g) + 1, dtype=torch.float64)
    missed[:-1, :-1] = g.diag() - torch.outer(g, g)
    moved[:-1, :-1] = g.diag()
    moved[-1, :-1] = moved[:-1, -1] = g
    totals = [0.0, 0.0]
    for a, b in pairs:
        rows = [local[client][a].double() - theta[a].double() for client in used]
        cols = [local[client][b].double() - theta[b].double() for client in used]
        of_a, of_b = torch.cat([*rows, theta[a].double()]), torch.cat([*cols, theta[b].double()], dim=1)
        inner_a, inner_b = of_a @ of_a.T, of_b.T @ of_b
        for which, small in enumerate((missed, moved)):
            k = torch.kron(small, torch.eye(theta[a].shape[0], dtype=torch.float64))
            totals[which] += float(((inner_b @ k) * (k @ inner_a)).sum())
    return math.sqrt(max(totals[0], 0.0)), math.sqrt(max(totals[1], 0.0))


def mean_error(theta: State, local: Mapping[int, State], factors: Mapping[int, float]) -> float | None:
    """``||E||_F / ||U||_F`` over all pairs: how wrong the mean of A and B apart is, 0 where it is right.

    A layer's scale (alpha / r), the same for all, cancels. None where nothing is LoRA, nothing moves, or it would take
    too long.
    """
    pairs = lora_pairs(theta)
    found = norms(theta, local, factors, pairs) if pairs and any(factors.values()) else None
    return found[0] / found[1] if found and found[1] > 0 else None
