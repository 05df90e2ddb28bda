"""Pads rows of one batch to its longest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedbias_plugin.tasks.encoding import IGNORED, Feature


class LabelCollator:
    """Pads token ids and attention mask on the right; ``labels`` is one number a row.

    Args:
        pad_token_id: of the model.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.fill = {"input_ids": pad_token_id, "attention_mask": 0}

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """int64 tensors of shape (rows, longest row), and (rows,) of labels."""
        return {
            **{name: _padded([feature[name] for feature in features], fill) for name, fill in self.fill.items()},
            "labels": torch.tensor([feature["labels"] for feature in features]),
        }


def _padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


class PaddingCollator:
    """Pads on the right: token ids with ``pad_token_id``, labels with the ignored label, the attention mask with 0.

    Padding is told by position, not by token, so that a tokenizer whose padding token is EOS keeps its real EOS in the
    loss.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.fill = {"input_ids": pad_token_id, "attention_mask": 0, "labels": IGNORED}

    def __call__(self, features: Sequence[Feature]) -> dict[str, torch.Tensor]:
        """int64 tensors of shape (rows, longest row)."""
        return {name: _padded([feature[name] for feature in features], fill) for name, fill in self.fill.items()}
