"""Scoring split over the processes of ``accelerate launch``: each takes its batches, all get all scores."""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.items import FloatArray


@dataclass(frozen=True)
class Processes:
    """The processes that score together; one alone by default.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are. All must make the same calls in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0

    def is_mine(self, batch: int) -> bool:
        """Whether batch number ``batch`` is this process's to score. The batches are those of a single process, so
        that their number does not change a score."""
        return batch % self.size == self.rank

    def agree(self, *, failed: bool = False, size: int = 0, sample: float = 0.0) -> None:
        """Go on if all processes do, and with the same work; every process must come here once a call.

        Args:
            failed: this process raises an error of its own.
            size: how many numbers it is about to give to :meth:`total`.
            sample: a number that is the same where the models are.

        Raises:
            UserError: another process failed, or the processes do not hold the same model.
        """
        if self.size == 1:
            return
        import torch

        own = torch.tensor([float(failed), size, sample], dtype=torch.float64, device=_device())
        found = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(found, own)
        failures, sizes, samples = torch.stack(found).cpu().numpy().T
        if failed:
            return
        if failures.any():
            raise UserError(f"scoring failed in process {int(failures.argmax())}; its own message says why.")
        if len(set(sizes)) > 1 or not np.allclose(samples, sample, rtol=1e-3, equal_nan=True):
            raise UserError(
                "the processes that score together do not hold the same model; give every process the same weights."
            )

    def total(self, values: FloatArray) -> FloatArray:
        """Sum over the processes; with zeros in every process but one, exactly the values of that one."""
        if self.size == 1:
            return values
        import torch

        tensor = torch.from_numpy(values).to(_device())
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy()


def _device() -> str:
    """Where the processes' way of talking to each other takes tensors from."""
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def is_sharded(model: Any) -> bool:
    """Whether this process holds only a part of some weight: FSDP, or DeepSpeed's ZeRO-3."""
    return any(
        type(part).__name__ in ("DTensor", "FlatParameter") or hasattr(part, "ds_id") for part in model.parameters()
    )


ALONE = Processes()


def running_processes() -> Processes:
    """Those that torch.distributed connects at this moment."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return ALONE


def join_processes() -> Processes:
    """Connect with the other processes that ``accelerate launch`` or ``torchrun`` started, if it did, until this one
    ends: its connections are closed before the interpreter goes, whose end would otherwise now and then abort."""
    if launched() > 1:
        import torch.distributed.nn  # noqa: F401 - its functions keep as a default the group of the moment of import: none
        from accelerate import PartialState

        atexit.register(PartialState().destroy_process_group)
    return running_processes()


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1
