"""What the server checks of a received update before it uses it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.state import State


@dataclass
class Checks(Stage):
    """Names what is wrong with an update.

    Missing or unknown tensors, another shape or dtype, NaN or Inf, a training loss that is not finite, a norm beyond
    ``--max_update_norm``; the first of these is the fault. What travels beside the state (SCAFFOLD's control variates)
    must fit the model and be finite, too. A good update is read once.
    """

    order: ClassVar[int] = 100

    max_update_norm: float | None = option(
        None,
        "an update with a larger L2 norm is a bad update; no limit when absent. Every round shows its update norms",
        above=0,
        may_change=True,
    )

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Give every update its norm, and its fault if it has one."""
        for update in updates.values():
            update.norm, update.fault = self._checked(theta, update)

    def _checked(self, theta: State, update: Update) -> tuple[float | None, str | None]:
        fault = _misfit(theta, update.state)
        if fault is not None:
            return None, fault
        norm, limit = update_norm(theta, update.state), self.max_update_norm
        if not math.isfinite(norm):  # only now is it worth a second reading to find the entries
            return None, _not_finite(update.state) or f"update norm {norm}"
        if update.loss is not None and not math.isfinite(update.loss):
            return norm, f"training loss {update.loss}"
        if limit is not None and norm > limit:
            return norm, f"update norm {norm:.6g}, larger than --max_update_norm {limit:g}"
        for name, part in {**update.sent, **update.keeps}.items():
            fault = _misfit(theta, part) or _not_finite(part)
            if fault is not None:
                return norm, f"{name}: {fault}"
        return norm, None


def accepted_updates(number: int, updates: Mapping[int, Update], on_bad_update: str) -> dict[int, Update]:
    """The updates without a fault; all of them where ``on_bad_update`` is ``use``.

    Raises:
        UserError: one has a fault, and ``on_bad_update`` is ``stop``; round, clients and faults are named.
    """
    faults = {client: update.fault for client, update in updates.items() if update.fault is not None}
    if faults and on_bad_update == "stop":
        named = "; ".join(f"client {client}: {fault}" for client, fault in faults.items())
        raise UserError(
            f"Round {number} has updates that cannot be used ({named}). Lower --learning_rate if training has "
            "diverged; --on_bad_update drop goes on without such clients."
        )
    return {client: update for client, update in updates.items() if client not in faults or on_bad_update == "use"}


def fault_warnings(updates: Mapping[int, Update], accepted: Collection[int], *, moves: bool = False) -> list[str]:
    """One line for the refused updates of a round, and one for those that a host's own run uses all the same.

    ``moves``: whether the global model moves without any update.
    """
    faults = {client: update.fault for client, update in updates.items() if update.fault is not None}
    refused = [f"client {client} ({fault})" for client, fault in faults.items() if client not in accepted]
    used = [f"client {client} ({fault})" for client, fault in faults.items() if client in accepted]
    nobody = "; nobody is left, and the global model stays as it was" if not (accepted or moves) else ""
    return [
        *([f"update refused: {', '.join(refused)}{nobody}"] if refused else []),
        *([f"update faulty but used: {', '.join(used)}"] if used else []),
    ]


def update_norm(global_state: State, local_state: State) -> float:
    """L2 norm of ``theta_i - theta`` over all tensors, summed in float64; NaN or infinite when an entry is."""
    import torch

    from fedbias_plugin.aggregation.pieces import flat, pieces, wide

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
    import torch

    from fedbias_plugin.aggregation.pieces import flat, pieces

    return sum(int((~torch.isfinite(flat(tensor)[piece])).sum()) for piece in pieces(tensor))


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'s' if count > 1 else ''}"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
