"""The contract of a task: what a row becomes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.extension import Extension

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.training.base import ClientRound, Trainable
    from fedbias_plugin.training.client_trainer import TrainingSettings


@dataclass(frozen=True)
class RowScores:
    """A model on rows: an entry a row, shape (rows,); NaN where a row cannot be scored whole.

    Attributes:
        nll: summed loss of the row, nats.
        tokens: what the sum is over: tokens of the response; 1 where a row has one label.
        right: 1 where the model is right, else 0; None where the task knows no right and wrong.
        gap: by how much the response is likelier than the row's rejected one, nats; None where there is none.
    """

    nll: NDArray[Any]
    tokens: NDArray[Any]
    right: NDArray[Any] | None = None
    gap: NDArray[Any] | None = None


@dataclass(frozen=True)
class ModelKind:
    """Which model a task trains.

    Attributes:
        auto_class: of Transformers, which makes it of ``--model_name_or_path``.
        settings: of its config, beside those of the checkpoint.
        random_weights: whether it starts from weights drawn from the seed, not from those of the checkpoint.
        make: makes one of the task's own of ``settings``, in the place of ``--model_name_or_path``.
    """

    auto_class: str = "AutoModelForCausalLM"
    settings: Mapping[str, Any] = field(default_factory=dict)
    random_weights: bool = False
    make: Callable[[Mapping[str, Any]], PreTrainedModel] | None = None

    @property
    def draws_weights(self) -> bool:
        """Whether the seed draws some of its weights, all or those of a head, so that runs start from others."""
        return self.random_weights or self.auto_class.endswith("ForSequenceClassification")

    @property
    def is_causal_lm(self) -> bool:
        """Whether it predicts the next token."""
        return self.auto_class == "AutoModelForCausalLM" and self.make is None


@dataclass(frozen=True)
class Objective:
    """What a client's steps of a round go down.

    Attributes:
        features: the rows that it trains on.
        loss: model and batch -> mean loss of the batch's rows; None: the model's own, of the batch's ``labels``.
    """

    features: Sequence[dict[str, Any]]
    loss: Callable[[Any, dict[str, Any]], torch.Tensor] | None = None


@dataclass
class Task(Extension):
    """From rows to features and batches, whose ``labels`` the model makes its loss of; chosen by ``--task NAME``.

    Its flags are read by every host before it is built: what speaks of them are class methods.

    Attributes:
        tells_right: whether :meth:`score_rows` says which rows the model is right about.
        reads_all_rows: whether it cannot work with :meth:`read` of some clients' rows alone.
        reads_preferences: whether a row has a rejected response too: ``--preference_dataset`` is dealt.
        makes_loss: whether :meth:`objective` has a loss of its own.
    """

    tells_right: ClassVar[bool] = False
    reads_all_rows: ClassVar[bool] = False
    reads_preferences: ClassVar[bool] = False
    makes_loss: ClassVar[bool] = False

    @classmethod
    def defaults(cls, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Flag -> its default in a run of this task, where it is another one; ``flags`` are those that were written."""
        return {}

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

    def read(self, partition: Partition) -> None:  # most need nothing of it
        """Called with every row of the run, before anything is encoded.

        Raises:
            UserError: the rows are none for this task.
        """

    @property
    def model_kind(self) -> ModelKind:
        """Which model it trains; asked for after :meth:`read`."""
        return ModelKind()

    def check_trainable(self, trainable: Trainable) -> None:  # most train any
        """Called with what is trained, before the model is read.

        Raises:
            UserError: the task cannot train it.
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

    def token_ids(self, feature: dict[str, Any]) -> list[Sequence[int]]:
        """The sequences of ``feature`` that the model reads."""
        return [feature["input_ids"]]

    @contextmanager
    def objective(
        self,
        model: PreTrainedModel,
        features: Sequence[dict[str, Any]],
        job: ClientRound,
        settings: TrainingSettings,
        pad_token_id: int,
    ) -> Iterator[Objective]:
        """What a client trains for in a round: entered before its first step, left after its last.

        Args:
            model: holds the state that the client starts from; it trains and is to be left in the mode it had.
            features: the rows of the round.
            job: the client's round; what is put into its ``extra`` is recorded.
            settings: how clients train.
            pad_token_id: of the tokenizer.
        """
        yield Objective(features)

    def collator(self, pad_token_id: int) -> Callable[[list[dict[str, Any]]], Any]:
        """What makes a batch of features."""
        from fedbias_plugin.tasks.collator import PaddingCollator

        return PaddingCollator(pad_token_id)
