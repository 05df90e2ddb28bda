"""What today's Trainer does differently from the one OpenFedLLM was written for, put right."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy
from transformers.training_args import OptimizerNames

from fedbias_plugin.training.client_trainer import use_one_gpu


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


def accept_item_counts(cls: type) -> None:
    """Let a host's ``compute_loss(model, inputs, return_outputs)`` be called with ``num_items_in_batch`` too."""
    inner = cls.__dict__.get("compute_loss")
    if inner is None:
        return

    def compute_loss(
        self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        return inner(self, model, inputs, return_outputs=return_outputs)

    cls.compute_loss = compute_loss  # type: ignore[attr-defined]


def copy_training_arguments(source: TrainingArguments, target: TrainingArguments) -> None:
    """Set every field of ``TrainingArguments`` in ``target``, an instance of a subclass, to the value in ``source``."""
    for field in fields(TrainingArguments):
        setattr(target, field.name, getattr(source, field.name))
    use_one_gpu(target)
