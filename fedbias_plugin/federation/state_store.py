"""Where clients' states wait between being trained and being averaged: in memory, or in files mapped into it."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import apply_umask, sync_file
from fedbias_plugin.memory import free_memory_bytes
from fedbias_plugin.state import State

logger = logging.getLogger(__name__)


def write_state_file(state: State, path: Path, *, sync: bool = True) -> None:
    """Write ``state`` to ``path``; the file's mode follows the user's umask.

    Args:
        state: name -> tensor on the CPU, of any layout; tensors may share memory.
        path: replaced if it exists, not atomically: give a temporary name and rename.
        sync: force it to the disk, for a file that must outlive the machine.

    Raises:
        OSError, safetensors.SafetensorError: it cannot be written.
    """
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
    # As safetensors takes it: contiguous, no memory shared. Only tensors that break the rule are copied.
    separate = {
        name: tensor.contiguous()
        if users[tensor.untyped_storage().data_ptr()] == 1
        else tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    save_file(separate, path)
    apply_umask(path)
    if sync:
        sync_file(path)


class StateStore:
    """Keeps named states; with a folder as files, whose pages the system may drop from memory and read again.

    Args:
        folder: the store's own, made by the first :meth:`keep`, deleted by :meth:`close`; None keeps states in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def keep(self, name: str, state: State) -> State:
        """``state`` itself, or with a folder its equal: the same names in the same order, mapped from a file.

        A state kept as ``name`` before is replaced; tensors mapped from it stay valid. A write to a mapped tensor
        never reaches the file.

        Args:
            name: of the file, without its ending.
            state: name -> tensor on the CPU, of any layout; tensors may share memory, and do not any more afterwards.

        Raises:
            UserError: the folder cannot be made or written, or its disk is full; nothing is left of this state then.
        """
        if self.folder is None:
            return state
        path = self.folder / f"{name}.safetensors"
        partial = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state_file(state, partial, sync=False)
            os.replace(partial, path)
            mapped = load_file(path)
        except (OSError, SafetensorError) as error:
            if self.folder.is_dir():
                partial.unlink(missing_ok=True)
            size = state_bytes(state) / 1e9
            raise UserError(
                f"{self.folder}: a client's state of {size:.2f} GB cannot be written there ({error}). Give an "
                "--output_dir on a disk with room for it, or --local_states memory."
            ) from error
        return {key: mapped[key] for key in state}

    def drop(self, name: str) -> None:
        """Delete the file of ``name``, if there is one; tensors mapped from it stay valid."""
        if self.folder is not None:
            (self.folder / f"{name}.safetensors").unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder with all that is in it; safe to call twice."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def choose_store(local_states: str, folder: Path, waiting_bytes: int) -> StateStore:
    """The store that ``--local_states`` asks for.

    Args:
        local_states: ``memory``, ``disk``, or ``auto``: disk when ``waiting_bytes`` are more than half of the memory
            that is free now.
        folder: of the states on disk.
        waiting_bytes: what waits at once at most.
    """
    if local_states == "auto":
        free = free_memory_bytes()
        local_states = "disk" if waiting_bytes > free / 2 else "memory"
        if local_states == "disk":
            logger.info(
                "--local_states auto: the clients' states take %.1f GB, %.1f GB of memory are free; they wait in %s",
                *(waiting_bytes / 1e9, free / 1e9, folder),
            )
    return StateStore(folder if local_states == "disk" else None)


def state_bytes(state: State) -> int:
    """Bytes of all tensors of ``state``."""
    return sum(tensor.nbytes for tensor in state.values())
