"""A tensor as a fingerprint knows it: reading all of a large model would take minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def add_tensor(digest: Any, name: str, tensor: torch.Tensor, sample: int) -> None:
    """Feed a hash with name, shape, dtype and about ``sample`` entries, evenly spread; 0 is no entry."""
    import torch

    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
    if sample:
        entries = tensor.detach().reshape(-1)
        taken = entries[:: max(1, entries.numel() // sample)].cpu().contiguous()
        digest.update(taken.view(torch.uint8).numpy().tobytes())
