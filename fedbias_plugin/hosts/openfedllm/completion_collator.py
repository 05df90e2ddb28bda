"""trl 0.7.2's completion collator, for every tokenizer.

OpenFedLLM finds the response by the token ids of its marker, cut to fit Llama-2's tokenizer. Where that finds it,
nothing changes; where it finds nothing, trl trains on no token of the row, silently. Then the labels are taken that
were found by the text.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from trl import DataCollatorForCompletionOnlyLM

from fedbias_plugin.tasks.encoding import IGNORED, Feature


class CompletionCollator(DataCollatorForCompletionOnlyLM):
    """As trl's, with :meth:`remember` for the labels by text."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._labels: dict[tuple[int, ...], list[int]] = {}
        self._by_text = False

    def remember(self, features: Sequence[Feature], *, by_text: bool) -> None:
        """Keep the labels of the rows that the next batches hold.

        Args:
            features: the rows of this round.
            by_text: use them for every row, not only where trl finds no response: with EOS as padding token trl would
                train no EOS.
        """
        self._labels = {tuple(feature["input_ids"]): feature["labels"] for feature in features}
        self._by_text = by_text

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """One padded batch with labels."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not find response key")
            batch = super().torch_call(examples)
        for example, labels in zip(examples, batch["labels"], strict=True):
            if not self._by_text and (labels != IGNORED).any():
                continue
            ids = tuple(example["input_ids"])
            if ids not in self._labels:
                raise RuntimeError(f"A row of {len(ids)} tokens reached the trainer that the plugin has not seen.")
            labels[:] = IGNORED
            labels[: len(ids)] = torch.tensor(self._labels[ids])
        return batch
