"""The contract of a task: what a row becomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.extension import Extension

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.data.rows import Row


@dataclass
class Task(Extension):
    """From rows to features and batches, whose ``labels`` the model makes its loss of; chosen by ``--task NAME``."""

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where it does not fit the run's ``flags``; called before anything is read."""

    @classmethod
    def fields(cls, flags: Mapping[str, Any]) -> tuple[str, str] | None:
        """The columns of a text and of its label, which become a row's instruction and response; None: as usual."""
        return None

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:  # most need nothing of it
        """Called before anything else, with the model's tokenizer.

        Raises:
            UserError: it does not fit the flags.
        """

    def prompt(self, instruction: str) -> str:
        """The text up to where the response begins, for the held-out loss."""
        return instruction

    @abstractmethod
    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, seq_length: int) -> list[dict[str, Any]]:
        """A feature for every row, in their order, so that a row's number means the same everywhere.

        Raises:
            UserError: a row cannot be encoded; it is named.
        """

    def is_trainable(self, feature: dict[str, Any]) -> bool:
        """Whether ``feature`` has anything to train on after it was cut."""
        from fedbias_plugin.tasks.encoding import trainable_tokens

        return trainable_tokens(feature) > 0

    def collator(self, pad_token_id: int) -> Callable[[list[dict[str, Any]]], Any]:
        """What makes a batch of features."""
        from fedbias_plugin.tasks.collator import PaddingCollator

        return PaddingCollator(pad_token_id)
