"""Pads rows of one batch to its longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedbias_plugin.tasks.encoding import IGNORED, Feature


class PaddingCollator:
    """Pads on the right: token ids with ``pad_token_id``, labels with the ignored label, the attention mask with 0.

    Padding is told by position, not by token, so that a tokenizer whose padding token is EOS keeps its real EOS in the
    loss.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORED}

    def __call__(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """int64 tensors of shape (rows, longest row)."""
        longest = max(len(feature["input_ids"]) for feature in features)
        return {
            name: torch.tensor([feature[name] + [fill] * (longest - len(feature[name])) for feature in features])
            for name, fill in self.fill.items()
        }
