"""What trl and Transformers were when OpenFedLLM was written, on today's versions of them.

The host builds ``SFTTrainer(tokenizer=, max_seq_length=, formatting_func=, data_collator=, ...)`` and
``DPOTrainer(tokenizer=, beta=, ...)``, and, for FedProx and SCAFFOLD, classes on top of them. trl's classes of these
names no longer take any of this. In DPO two differences stay: trl 0.7.2 tokenized prompt and response apart and cut
prompts at 128 tokens; today's tokenizes them together and cuts the end of what is longer than 512 tokens.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
import transformers
import trl
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from fedbias_plugin.errors import UserError
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.encoding import Feature
from fedbias_plugin.training.client_trainer import ClientTrainer, use_one_gpu

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 512
"""Tokens of prompt and response; trl 0.7.2's default, which OpenFedLLM relies on (it never passes ``--seq_length``)."""


def mend_training_arguments(args: TrainingArguments) -> None:
    """Give ``args`` the meaning they had.

    No checkpoint of every client's last step, whose rotation would delete the host's own checkpoints; AdamW that is not
    fused; checkpointing that passes gradients into the adapters of a frozen base; one GPU.
    """
    args.save_strategy = SaveStrategy.NO
    if args.optim == OptimizerNames.ADAMW_TORCH_FUSED:
        args.optim = OptimizerNames.ADAMW_TORCH
    use_one_gpu(args)
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if getattr(args, name, 0) is None:
            setattr(args, name, {"use_reentrant": False})


class TakesItemCounts:
    """Lets a host's ``compute_loss(model, inputs, return_outputs)`` be called with ``num_items_in_batch`` too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        inner = cls.__dict__.get("compute_loss")
        if inner is None:
            return

        def compute_loss(
            self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            return inner(self, model, inputs, return_outputs=return_outputs)

        cls.compute_loss = compute_loss  # type: ignore[attr-defined]


class SFTTrainer(TakesItemCounts, ClientTrainer):
    """:class:`transformers.Trainer` with the loss of the built-in host, so that both give the same numbers.

    Args:
        args: the host's training arguments, mended in place.
        train_dataset: token ids and labels of a client's rows of one round, as the hooks make them.
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


class DataCollatorForCompletionOnlyLM:
    """Stands where the host asks for trl's collator, which is gone; the labels are made when rows are encoded.

    The host's token ids of the response marker are not used: they fit Llama-2's tokenizer only.
    """

    def __init__(self, response_template: list[int], tokenizer: PreTrainedTokenizerBase, **kwargs: Any) -> None:
        del response_template, tokenizer, kwargs


class DPOTrainer(TakesItemCounts, trl.DPOTrainer):
    """Takes what OpenFedLLM passes.

    Args:
        model: the policy; with an adapter, the same model without it is the reference.
        args: the host's training arguments.
        beta: of the DPO loss.
        tokenizer: pads and is saved beside the host's own checkpoints.
        kwargs: the Trainer's own (``ref_model``, ``train_dataset``).
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self, *, model: Any, args: TrainingArguments, beta: float, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> None:
        mend_training_arguments(args)
        own = {"bf16": args.bf16, "fp16": args.fp16, "use_cpu": args.use_cpu}  # which a config checks when it is made
        config = trl.DPOConfig(output_dir=args.output_dir, beta=beta, max_length=MAX_LENGTH, report_to=[], **own)
        for spec in fields(TrainingArguments):
            setattr(config, spec.name, getattr(args, spec.name))
        use_one_gpu(config)
        weights = {}
        if getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False):
            # trl is about to cast them to bfloat16, in which small updates are lost.
            weights = {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
        super().__init__(model=model, args=config, processing_class=tokenizer, **kwargs)
        for parameter, data in weights.items():
            parameter.data = data
        if "ref" in getattr(model, "peft_config", {}):
            # A copy of the adapter as it is now; from the second client on it would no longer be the reference.
            model.delete_adapter("ref")
        self.model_accepts_loss_kwargs = False

    def _send_telemetry(self) -> None:
        """One ping a client a round is nobody's business; trl's own switch is for the whole process."""


class AutoModelForCausalLM(transformers.AutoModelForCausalLM):
    """Takes the place of Transformers' class in a patched script."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As Transformers', but ``torch_dtype=None`` means float32, as it did when the host was written.

        In Transformers 5 None means the checkpoint's own dtype, such as bfloat16.
        """
        if "torch_dtype" in kwargs:
            kwargs["dtype"] = kwargs.pop("torch_dtype") or torch.float32
        return super().from_pretrained(*args, **kwargs)
