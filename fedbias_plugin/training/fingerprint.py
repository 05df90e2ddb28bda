"""Whether two loaded models are the same one, told from a sample of their weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from fedbias_plugin.training.states import live_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE = 1024
"""Entries of each tensor that are looked at, evenly spread: reading all of a large model would take minutes."""
TEXT = "The quick brown fox, 1984: naïve -- 「狐」\n### Response:"


def model_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over names, shapes, dtypes and a sample of the weights that are *not* trained, and of how text is cut.

    Trained weights are left out, so that it stays the same over a run. It finds another model, not a forged one.
    """
    trained = {id(parameter) for parameter in live_parameters(model).values()}
    digest = hashlib.sha256(f"{len(tokenizer)} {tokenizer(TEXT)['input_ids']}".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if id(parameter) not in trained:
            entries = parameter.detach().reshape(-1)
            sample = entries[:: max(1, entries.numel() // SAMPLE)].cpu().contiguous()
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
