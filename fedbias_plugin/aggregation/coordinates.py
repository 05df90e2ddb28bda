"""A trimmed mean of every coordinate, piece by piece."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedbias_plugin.aggregation.pieces import Buffers, empty_like, flat, pieces, wide
from fedbias_plugin.aggregation.substitution import check_fits
from fedbias_plugin.state import State


def trimmed_mean_state(global_state: State, local_states: Mapping[int, State], trim: int) -> State:
    """Every coordinate's mean over the C clients without its ``trim`` smallest and largest values, piece by piece.

    Args:
        global_state: theta; gives names, shapes and dtypes only.
        local_states: client id -> theta_i with the same names, shapes and dtypes; not modified.
        trim: 2 trim < C.

    Returns:
        A new state; means are taken in float64. A coordinate in which any client has NaN is NaN.

    Raises:
        ValueError: a client's state lacks a tensor or has another shape (client and name are given).
    """
    result: State = {}
    buffers = Buffers()
    for name, theta in global_state.items():
        for client, state in local_states.items():
            check_fits(client, name, state.get(name), theta)
        local = {client: flat(state[name]) for client, state in local_states.items()}
        new = empty_like(theta)
        for piece in pieces(new, together=len(local)):
            # A copy, because sorting writes, and in the dtype of the server
            like = wide(flat(new)[piece])
            rows = [buffers.take(str(client), like).copy_(tensor[piece]) for client, tensor in local.items()]
            kept = _sorted(rows, buffers.take("spare", like))[trim : len(rows) - trim]
            total = buffers.take("total", like.double()).copy_(kept[0])
            for row in kept[1:]:
                total.add_(row)
            flat(new)[piece] = total.div_(len(kept))
        result[name] = new
    return result


def _sorted(rows: list[torch.Tensor], spare: torch.Tensor) -> list[torch.Tensor]:
    """The values of every column in ascending order over the rows, in the memory of ``rows`` and ``spare``.

    Odd-even transposition, because ``torch.sort`` across tensors takes ten times as long for ten clients.
    """
    rows = list(rows)
    for step in range(len(rows)):
        for low in range(step % 2, len(rows) - 1, 2):
            smaller = torch.minimum(rows[low], rows[low + 1], out=spare)
            torch.maximum(rows[low], rows[low + 1], out=rows[low + 1])
            rows[low], spare = smaller, rows[low]
    return rows
