"""What clients send and servers average."""

from __future__ import annotations

from typing import TypeAlias

import torch

State: TypeAlias = dict[str, torch.Tensor]
"""name -> tensor: a LoRA adapter or all trained weights, on the CPU, floats of at least 32 bits."""
