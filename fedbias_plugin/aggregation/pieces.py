"""Tensors in pieces that fit a CPU's cache.

Averaging is entry by entry, so a large tensor may be averaged piece by piece with the same bits. The temporaries of a
piece are read again while they are in the cache; those of a whole tensor travel to the memory and back, and their pages
have to be made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator

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
