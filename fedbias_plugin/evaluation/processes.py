"""Scoring split over the processes of ``accelerate launch``: each takes its batches, all get all scores."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fedbias_plugin.evaluation.items import FloatArray


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

    def total(self, values: FloatArray) -> FloatArray:
        """Sum over the processes; with zeros in every process but one, exactly the values of that one."""
        if self.size == 1:
            return values
        import torch

        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        tensor = torch.from_numpy(values).to(device)
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy()


ALONE = Processes()


def running_processes() -> Processes:
    """Those that torch.distributed connects at this moment."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return ALONE


def join_processes() -> Processes:
    """Connect with the other processes that ``accelerate launch`` or ``torchrun`` started, if it did."""
    if launched() > 1:
        from accelerate import PartialState

        PartialState()
    return running_processes()


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdigit() else 1
