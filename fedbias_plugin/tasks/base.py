"""The contract of a task: what a row becomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.extension import Extension

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass(frozen=True)
class RowScores:
    """A model on rows: an entry a row, shape (rows,); NaN where a row cannot be scored whole.

    Attributes:
        nll: summed loss of the row, nats.
        tokens: what the sum is over: tokens of the response; 1 where a row has one label.
        right: 1 where the model is right, else 0; None where the task knows no right and wrong.
    """

    nll: NDArray[Any]
    tokens: NDArray[Any]
    right: NDArray[Any] | None = None


@dataclass
class Task(Extension):
    """From rows to features and batches, whose ``labels`` the model makes its loss of; chosen by ``--task NAME``.

    Attributes:
        tells_right: whether :meth:`score_rows` says which rows the model is right about.
    """

    tells_right: ClassVar[bool] = False

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

    def score_rows(self, rows: Sequence[Row], scorer: SentenceScorer, seq_length: int) -> RowScores:
        """The loss of ``scorer.model`` on every row; ``rows`` are of any clients, and all of a measurement.

        Raises:
            UserError: a score is no number.
        """
        from fedbias_plugin.tasks.response_scores import response_scores

        pairs = [(self.prompt(row.instruction), row.response) for row in rows]
        return response_scores(pairs, scorer, seq_length, lambda index: f"row {rows[index].id}")

    def is_trainable(self, feature: dict[str, Any]) -> bool:
        """Whether ``feature`` has anything to train on after it was cut."""
        from fedbias_plugin.tasks.encoding import trainable_tokens

        return trainable_tokens(feature) > 0

    def collator(self, pad_token_id: int) -> Callable[[list[dict[str, Any]]], Any]:
        """What makes a batch of features."""
        from fedbias_plugin.tasks.collator import PaddingCollator

        return PaddingCollator(pad_token_id)
