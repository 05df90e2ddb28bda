"""What trl's SFT classes were when OpenFedLLM was written, on today's Transformers.

The host builds ``SFTTrainer(tokenizer=, max_seq_length=, formatting_func=, data_collator=, ...)`` and, for FedProx and
SCAFFOLD, classes on top of it. trl's class of that name no longer takes any of this; the one here is
:class:`transformers.Trainer` with the tokenization and the loss of the built-in host, so that both give the same
numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.trainer_bridges import accept_item_counts, mend_training_arguments
from fedbias_plugin.training.client_trainer import ClientTrainer
from fedbias_plugin.training.collator import PaddingCollator
from fedbias_plugin.training.encoding import Feature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments


class SFTTrainer(ClientTrainer):
    """Takes what OpenFedLLM passes; the rows come encoded, as the hooks make them.

    Args:
        args: the host's training arguments, mended in place.
        train_dataset: token ids and labels of a client's rows of one round.
        tokenizer: saved beside the host's own checkpoints.
        formatting_func, data_collator, max_seq_length: used when the rows were encoded, not here.
        kwargs: the Trainer's own.

    Raises:
        UserError: packed rows (FedLLM-Bench's multi-turn tasks) are asked for.
    """

    def __init__(
        self,
        *,
        args: TrainingArguments,
        train_dataset: list[Feature],
        tokenizer: PreTrainedTokenizerBase,
        formatting_func: Any = None,
        data_collator: Any = None,
        max_seq_length: int | None = None,
        packing: bool = False,
        **kwargs: Any,
    ) -> None:
        if packing:
            raise UserError("--multi_turn_task packs rows, which works on the pinned stack (trl 0.7.2) only.")
        mend_training_arguments(args)
        args.remove_unused_columns = False
        super().__init__(
            args=args,
            train_dataset=train_dataset,
            processing_class=tokenizer,
            data_collator=PaddingCollator(tokenizer.pad_token_id),
            **kwargs,
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_item_counts(cls)


class DataCollatorForCompletionOnlyLM:
    """Stands where the host asks for trl's collator, which is gone; the labels are made when rows are encoded.

    Args:
        response_template: the token ids that the host believes to be the response marker. Not used: they fit Llama-2's
            tokenizer only.
        tokenizer: not used either.
    """

    def __init__(self, response_template: list[int], tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        del response_template, tokenizer, kwargs
