"""The same bits in every run, where PyTorch can give them."""

from __future__ import annotations

import os

import torch


def make_deterministic() -> None:
    """Let this process take deterministic kernels only, for ``--deterministic``; to be called before the GPU is used.

    On a CPU training is deterministic anyway; what changes there is that scoring makes no choice by measured time or
    free memory (:mod:`fedbias_plugin.scoring.fast_linears`). On a GPU attention is computed without fused kernels,
    whose gradients are summed in varying order; an operation that has no deterministic kernel costs a warning that
    names it, and goes on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
