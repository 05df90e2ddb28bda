"""FedPSF's first module: a client sends the parts of its update that moved most, and keeps the rest for later.

How much is sent, and by what score, is this package's choice, not the paper's (docs/fairness.md); that what is not sent
is kept and added later is error feedback (Stich et al. 2018, arXiv:1809.07599).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.aggregation.fedpsf import PSM, FedPsfFlags, of_module
from fedbias_plugin.options import option
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    import torch

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.state import State

RESIDUAL, PROMPT = "psm_residual", "prompt_embeddings"
UNITS = ("auto", "row", "pair", "tensor")
SAME = 1e-9
"""Share of a total by which a sum may miss it and still reach it."""


@dataclass
class Psm(FedPsfFlags, Stage):
    """Sends ``theta + D_u`` of the units u with the largest ``||D_u||``, and theta of the others.

    ``D = theta_i - theta`` and what was kept back before. The others' D_u are the client's residual, which joins its
    next update. It counts once the update is accepted: after a refused one the client goes on with the residual before.
    """

    psm_tau: float = option(
        0.9,
        "share of the sum of all units' sizes from which on no further unit is sent",
        above=0,
        at_most=1,
        read_when=of_module(PSM),
    )
    psm_rho: float = option(
        0.5, "largest share of the units that is sent", above=0, at_most=1, read_when=of_module(PSM)
    )
    psm_unit: str = option(
        "auto",
        "what is sent or kept back as a whole: row of a tensor, pair of LoRA's A and B, tensor; auto takes rows of a "
        "soft prompt, pairs of LoRA, and tensors otherwise",
        choices=UNITS,
        read_when=of_module(PSM),
    )
    psm_residual: bool = option(
        True, "keep what was not sent and add it to the next update; else it is lost", read_when=of_module(PSM)
    )
    order: ClassVar[int] = 50

    @property
    def keeps(self) -> tuple[str, ...]:
        """What was not sent."""
        return (RESIDUAL,) if self.psm_residual else ()

    def is_for(self, arguments: BiasArguments) -> bool:
        """With FedPSF, and with this module."""
        return arguments.aggregation == "fedpsf" and self.has(PSM)

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """The parts that are sent; an update that does not fit the model, or is not finite, is left for the checks."""
        if any(name not in update.state or update.state[name].shape != part.shape for name, part in theta.items()):
            return update
        residual = update.kept.get(RESIDUAL) if self.psm_residual else None
        delta, units = delta_of(update.state, theta, residual), units_of(theta, self.psm_unit)
        scores = unit_scores(delta, units)
        is_finite = all(map(math.isfinite, scores))
        chosen = selected(scores, self.psm_tau, self.psm_rho) if is_finite else range(len(scores))
        sent, rest = parted(delta, units, chosen)
        if self.psm_residual:
            update.keeps[RESIDUAL] = rest
        total = math.fsum(scores) if is_finite else 0.0
        update.extra |= {
            "psm_units": float(len(chosen)),
            "psm_share": math.fsum(scores[unit] for unit in chosen) / total if total else 1.0,
        }
        update = replace(update, payload=payload(theta, units, chosen))
        if len(chosen) == len(scores) and not any(part.any() for part in (residual or {}).values()):
            return update  # what was trained, bit for bit
        return replace(update, state={name: part + sent[name] for name, part in theta.items()})


def delta_of(state: State, theta: State, residual: State | None) -> State:
    """``theta_i - theta``, and the ``residual`` where there is one."""
    delta = {name: state[name] - part for name, part in theta.items()}
    return delta if residual is None else {name: part + residual[name].to(part) for name, part in delta.items()}


def units_of(theta: State, kind: str) -> dict[str, list[int]]:
    """Name of a tensor -> the numbers of its units: one of every row, or one of the whole.

    >>> import torch
    >>> row = torch.zeros(2, 3)
    >>> units_of({"prompt_embeddings": row, "q.lora_A.weight": row, "q.lora_B.weight": row, "norm": row}, "auto")
    {'prompt_embeddings': [0, 1], 'q.lora_A.weight': [2], 'q.lora_B.weight': [2], 'norm': [3]}
    """
    numbers: dict[str, int] = {}
    units: dict[str, list[int]] = {}
    for name, part in theta.items():
        of_rows = kind == "row" or (kind == "auto" and name.endswith(PROMPT))
        if of_rows and part.ndim:
            keys = [f"{name}[{row}]" for row in range(len(part))]
        else:
            keys = [re.sub(r"lora_(embedding_)?[AB]\b", r"lora_\1", name) if kind in ("auto", "pair") else name]
        units[name] = [numbers.setdefault(key, len(numbers)) for key in keys]
    return units


def unit_scores(delta: State, units: Mapping[str, Sequence[int]]) -> list[float]:
    """``||D_u||_2`` of every unit, summed in float64."""
    squares: dict[int, float] = {}
    for name, part in delta.items():
        of_rows = _by_unit(part, units[name]).double().square().sum(1).tolist()
        for unit, value in zip(units[name], of_rows, strict=True):
            squares[unit] = squares.get(unit, 0.0) + value
    return [math.sqrt(squares[unit]) for unit in range(len(squares))]


def selected(scores: Sequence[float], tau: float, rho: float) -> list[int]:
    """The fewest units, the largest first, whose scores have a share ``tau`` of all; at most ``ceil(rho m)`` of m.

    A sum that misses the share by rounding reaches it. Equal scores go to the lower number.

    >>> scores = [0.5, 0.3, 0.1, 0.06, 0.04]
    >>> selected(scores, 0.85, 1.0), selected(scores, 0.85, 0.4)
    ([0, 1, 2], [0, 1])
    """
    order = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))
    total, most = math.fsum(scores), math.ceil(rho * len(scores) - SAME)
    found: list[int] = []
    while len(found) < most and math.fsum(scores[unit] for unit in found) < tau * total * (1 - SAME):
        found.append(order[len(found)])
    return found


def parted(delta: State, units: Mapping[str, Sequence[int]], chosen: Sequence[int]) -> tuple[State, State]:
    """What is sent of ``delta`` and what is left; each entry is in one of the two, and 0 in the other."""
    import torch

    kept = set(chosen)
    sent: State = {}
    rest: State = {}
    for name, part in delta.items():
        goes = torch.tensor([unit in kept for unit in units[name]], device=part.device)
        shaped = goes.reshape(-1, *[1] * (part.ndim - 1)) if part.ndim else goes.reshape(())
        zero = torch.zeros((), dtype=part.dtype, device=part.device)
        sent[name], rest[name] = torch.where(shaped, part, zero), torch.where(shaped, zero, part)
    return sent, rest


def payload(theta: State, units: Mapping[str, Sequence[int]], chosen: Sequence[int]) -> dict[str, int]:
    """Bytes that a client would send: the values of the ``chosen`` units, and a bit for each unit that says which.

    >>> import torch
    >>> prompt = {"prompt_embeddings": torch.zeros(20, 768)}
    >>> payload(prompt, units_of(prompt, "auto"), [0, 1, 2, 3, 4])
    {'prompt rows': 15360, 'bitmap': 3}
    """
    kept, numbers = set(chosen), {unit for held in units.values() for unit in held}
    sizes = {name: part.nbytes // max(1, len(units[name])) for name, part in theta.items()}
    parts = sum(sizes[name] * sum(unit in kept for unit in held) for name, held in units.items())
    what = "prompt rows" if all(name.endswith(PROMPT) for name in theta) else "parts"
    return {what: parts, "bitmap": math.ceil(len(numbers) / 8)}


def _by_unit(part: torch.Tensor, units: Sequence[int]) -> torch.Tensor:
    return part.reshape(len(units), -1)
