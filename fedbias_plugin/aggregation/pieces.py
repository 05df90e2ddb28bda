"""Tensors in pieces that fit a CPU's cache.

Averaging is entry by entry, so a large tensor may be averaged piece by piece with the same bits. The temporaries of a
piece are read again while they are in the cache; those of a whole tensor travel to the memory and back, and their pages
have to be made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

PIECE = 2**19
"""Entries of a piece: 2 MiB in float32. Smaller ones cost more in Python, larger ones leave the caches."""


class Buffers:
    """Results in between, by name, in memory that every piece uses again.

    Memory that is given back and asked for again piece by piece may have to be mapped anew each time, which can take
    four times as long as the arithmetic.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """A flat tensor of as many entries as ``like``; what it held under this name is lost."""
        key = name, like.dtype, like.device
        if key not in self._made or self._made[key].numel() < like.numel():
            self._made[key] = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
        return self._made[key][: like.numel()]


@dataclass(frozen=True)
class Part:
    """A piece of one tensor as the server sees it in one round: views of the same entries of every state.

    Attributes:
        index: the round, from 0.
        theta: of the global state; not to be written.
        local: client id -> of that client's state; not to be written. Summed in this order.
        sample_counts: client id -> n_i.
        control_deltas: client id -> of its control variate's change (SCAFFOLD), else None.
        slots: slot name -> of what the server remembers; written in place.
        num_clients: all clients of the federation.
        buffers: for results in between.
    """

    index: int
    theta: torch.Tensor
    local: Mapping[int, torch.Tensor]
    sample_counts: Mapping[int, int]
    control_deltas: Mapping[int, torch.Tensor] | None
    slots: Mapping[str, torch.Tensor]
    num_clients: int
    buffers: Buffers

    def at(self, piece: slice) -> Part:
        """The entries of ``piece``, as views."""
        deltas = self.control_deltas
        return Part(
            self.index,
            self.theta[piece],
            {client: tensor[piece] for client, tensor in self.local.items()},
            self.sample_counts,
            None if deltas is None else {client: tensor[piece] for client, tensor in deltas.items()},
            {slot: tensor[piece] for slot, tensor in self.slots.items()},
            self.num_clients,
            self.buffers,
        )

    def weighted_mean(self, total: torch.Tensor) -> None:
        """``sum_i theta_i n_i / n`` into ``total``, multiplied, divided and added in this order, as OpenFedLLM does."""
        self._weighted_sum(iter(self.local.items()), total)

    def weighted_delta(self) -> torch.Tensor:
        """``sum_i D_i n_i / n``, likewise; in a buffer."""
        total = self.buffers.take("delta", self.theta)
        self._weighted_sum(zip(self.local, self._deltas(), strict=True), total)
        return total

    def mean_delta(self) -> torch.Tensor:
        """``sum_i D_i / C``: every client of the round counts the same; in a buffer."""
        deltas = self._deltas()
        total = self.buffers.take("delta", self.theta).copy_(next(deltas))
        for delta in deltas:
            total.add_(delta)
        return total.div_(len(self.local))

    def _deltas(self) -> Iterator[torch.Tensor]:
        """D_i of one client after the other, in one buffer."""
        term = self.buffers.take("term", self.theta)
        return (torch.sub(theta_i, self.theta, out=term) for theta_i in self.local.values())

    def _weighted_sum(self, terms: Iterator[tuple[int, torch.Tensor]], total: torch.Tensor) -> None:
        rows = sum(self.sample_counts[client] for client in self.local)
        total.zero_()
        if total.dtype in (torch.float16, torch.bfloat16):  # in which the number of rows is none
            for client, term in terms:
                total.add_(term * self.sample_counts[client] / rows)
            return
        divisor = torch.tensor(rows, dtype=total.dtype, device=total.device)
        for client, term in terms:
            total.addcdiv_(term, divisor, value=self.sample_counts[client])  # one pass, the same bits


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` with one dimension; a view of a contiguous one."""
    return tensor.reshape(-1)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as float32, in which a sum keeps its digits; any other dtype as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def pieces(tensor: torch.Tensor, together: int = 1) -> Iterator[slice]:
    """Where the pieces of ``flat(tensor)`` are; a tensor on a GPU is one piece.

    ``together``: how many tensors of this size are worked on at once; their pieces fit the cache together.
    """
    size = max(1, PIECE // together if tensor.device.type == "cpu" else tensor.numel())
    return (slice(start, start + size) for start in range(0, tensor.numel(), size))


def empty_like(tensor: torch.Tensor) -> torch.Tensor:
    """An uninitialised, contiguous tensor of the same shape, dtype and device."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)
