"""What the server checks of a received update before it uses it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedbias_plugin.aggregation.pieces import flat, pieces, wide
from fedbias_plugin.errors import UserError
from fedbias_plugin.state import State


@dataclass(frozen=True)
class CheckedUpdate:
    """What the server found.

    Attributes:
        norm: L2 norm of theta_i - theta over all tensors; None where it has no finite one.
        fault: what is wrong, as a phrase without client and round; None for a good update.
    """

    norm: float | None
    fault: str | None


def check_update(
    global_state: State, local_state: State, *, train_loss: float | None = None, max_norm: float | None = None
) -> CheckedUpdate:
    """Whether an update can be scored and averaged; the first of these faults is named.

    Missing or unknown tensors, another shape or dtype, NaN or Inf, a training loss that is not finite, a norm beyond
    ``max_norm``. A good update is read once.

    Args:
        global_state: theta, name -> tensor; not modified.
        local_state: theta_i as it was received; not modified.
        train_loss: nats per token as the client reports it, None when it reports none.
        max_norm: largest L2 norm of the update, None for any.
    """
    fault = _misfit(global_state, local_state)
    if fault is not None:
        return CheckedUpdate(None, fault)
    norm = update_norm(global_state, local_state)
    if not math.isfinite(norm):  # only now is it worth a second reading to find the entries
        return CheckedUpdate(None, _not_finite(local_state) or f"update norm {norm}")
    if train_loss is not None and not math.isfinite(train_loss):
        return CheckedUpdate(norm, f"training loss {train_loss}")
    if max_norm is not None and norm > max_norm:
        return CheckedUpdate(norm, f"update norm {norm:.6g}, larger than --max_update_norm {max_norm:g}")
    return CheckedUpdate(norm, None)


def check_updates(
    global_state: State,
    local_states: Mapping[int, State],
    train_losses: Mapping[int, float],
    max_norm: float | None,
) -> dict[int, CheckedUpdate]:
    """Client id -> :func:`check_update`."""
    return {
        client: check_update(global_state, state, train_loss=train_losses.get(client), max_norm=max_norm)
        for client, state in local_states.items()
    }


def accepted_updates(
    round_number: int, local_states: Mapping[int, State], checked: Mapping[int, CheckedUpdate], on_bad_update: str
) -> Mapping[int, State]:
    """The states without those that have a fault; the mapping itself where none has, or ``on_bad_update`` is ``use``.

    Raises:
        UserError: one has, and ``on_bad_update`` is ``stop``; round, clients and faults are named.
    """
    faults = {client: checked[client].fault for client in local_states if checked[client].fault is not None}
    if not faults or on_bad_update == "use":
        return local_states
    if on_bad_update == "stop":
        named = "; ".join(f"client {client}: {fault}" for client, fault in faults.items())
        raise UserError(
            f"Round {round_number} has updates that cannot be used ({named}). Lower --learning_rate if training has "
            "diverged; --on_bad_update drop goes on without such clients."
        )
    return {client: state for client, state in local_states.items() if client not in faults}


def update_norm(global_state: State, local_state: State) -> float:
    """L2 norm of ``theta_i - theta`` over all tensors, summed in float64; NaN or infinite when an entry is."""
    total = 0.0
    for name, theta in global_state.items():
        for piece in pieces(theta):
            base = wide(flat(theta)[piece])
            difference = flat(local_state[name])[piece].to(base) - base
            total += float(torch.linalg.vector_norm(difference, dtype=torch.float64) ** 2)
    return math.sqrt(total)


def _misfit(global_state: State, local_state: State) -> str | None:
    missing = [name for name in global_state if name not in local_state]
    if missing:
        return f"{_tensors(len(missing))} missing, the first {missing[0]!r}"
    unknown = [name for name in local_state if name not in global_state]
    if unknown:
        return f"{_tensors(len(unknown))} that the global model does not have, the first {unknown[0]!r}"
    for name, theta in global_state.items():
        local = local_state[name]
        if local.shape != theta.shape:
            return f"{name!r} has shape {tuple(local.shape)}, not {tuple(theta.shape)}"
        if local.dtype != theta.dtype:
            return f"{name!r} has dtype {_dtype(local)}, not {_dtype(theta)}"
    return None


def _not_finite(state: State) -> str | None:
    counts = {name: _bad_entries(tensor) for name, tensor in state.items()}
    total = sum(counts.values())
    if not total:
        return None
    first = next(name for name, count in counts.items() if count)
    return f"{total:,} {'entry is' if total == 1 else 'entries are'} NaN or infinite, the first in {first!r}"


def _bad_entries(tensor: torch.Tensor) -> int:
    return sum(int((~torch.isfinite(flat(tensor)[piece])).sum()) for piece in pieces(tensor))


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'s' if count > 1 else ''}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
