"""One construction that puts any weighting into any server algorithm without rewriting it.

Handed the same state ``theta + sum_i g_i (theta_i - theta)`` for every client of the round, any average of states
(weighted by samples, uniform, of models or of deltas) returns that state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from fedbias_plugin.aggregation.pieces import Buffers, empty_like, flat, pieces, wide
from fedbias_plugin.state import State


def weighted_state(
    global_state: State,
    local_states: Mapping[int, State],
    factors: Mapping[int, float],
    finish: Callable[[torch.Tensor], object] | None = None,
) -> State:
    """``theta + sum_i g_i (theta_i - theta)`` for every tensor, piece by piece.

    Args:
        global_state: theta, name -> tensor; not modified.
        local_states: client id -> theta_i with the same names, shapes and dtypes.
        factors: client id -> g_i; a client with factor 0 is left out, whatever its state holds.
        finish: changes every piece of the sum in place before it is rounded to its dtype, in the order of the state.

    Returns:
        A new state in the dtypes of ``global_state``; half-precision tensors are summed in float32.

    Raises:
        ValueError: a client's state lacks a tensor or has another shape (client and name are given).
    """
    result: State = {}
    buffers = Buffers()
    factors = {client: factor for client, factor in factors.items() if factor != 0}
    for name, theta in global_state.items():
        for client in factors:
            check_fits(client, name, local_states[client].get(name), theta)
        local = {client: flat(local_states[client][name]) for client in factors}
        new = empty_like(theta)
        for piece in pieces(new):
            base = wide(flat(theta)[piece])
            total, term = buffers.take("total", base).copy_(base), buffers.take("term", base)
            for client, factor in factors.items():
                total.add_(torch.sub(local[client][piece].to(base), base, out=term), alpha=factor)
            if finish is not None:
                finish(total)
            flat(new)[piece] = total
        result[name] = new
    return result


def substitute(
    global_state: State, local_states: Mapping[int, State], factors: Mapping[int, float]
) -> dict[int, State]:
    """The states to hand to the host: for every client the one :func:`weighted_state` (shared, not copied)."""
    state = weighted_state(global_state, local_states, factors)
    return dict.fromkeys(local_states, state)


def stacked(global_state: State, local_states: Mapping[int, State]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every piece of every tensor in float64: of theta (entries,), and of the clients' states (clients, entries).

    Raises:
        ValueError: a client's state lacks a tensor or has another shape (client and name are given).
    """
    for name, theta in global_state.items():
        for client, state in local_states.items():
            check_fits(client, name, state.get(name), theta)
        local = [flat(state[name]) for state in local_states.values()]
        for piece in pieces(theta, together=len(local)):
            yield flat(theta)[piece].double(), torch.stack([tensor[piece].double() for tensor in local])


def check_fits(client: int, name: str, local: torch.Tensor | None, theta: torch.Tensor) -> None:
    """Raise ValueError, with client and name, unless ``local`` is a tensor of the shape of ``theta``."""
    if local is None or local.shape != theta.shape:
        found = "is missing" if local is None else f"has shape {tuple(local.shape)}, not {tuple(theta.shape)}"
        raise ValueError(f"The update of client {client} cannot be aggregated: {name} {found}.")
