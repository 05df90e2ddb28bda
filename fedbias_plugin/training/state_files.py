"""A state as a safetensors file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

from fedbias_plugin.files import apply_umask, sync_file
from fedbias_plugin.state import State


def write_state_file(state: State, path: Path, *, sync: bool = True) -> None:
    """Write ``state`` to ``path``; the file's mode follows the user's umask.

    Args:
        state: name -> tensor on the CPU, of any layout; tensors may share memory.
        path: replaced if it exists, not atomically: give a temporary name and rename.
        sync: force it to the disk, for a file that must outlive the machine.

    Raises:
        OSError, safetensors.SafetensorError: it cannot be written.
    """
    save_file(_separate(state), path)
    apply_umask(path)
    if sync:
        sync_file(path)


def _separate(state: State) -> State:
    """``state`` as safetensors takes it: contiguous, no memory shared. Only tensors that break the rule are copied."""
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    return {
        name: tensor.contiguous()
        if users[tensor.untyped_storage().data_ptr()] == 1
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
