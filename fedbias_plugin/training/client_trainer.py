"""The Trainer of one client: :class:`transformers.Trainer` with OpenFedLLM's settings.

AdamW (not fused), weight decay 0, gradients clipped at norm 1, a learning rate that is constant within a round and
falls by a cosine over the rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from fedbias_plugin.tasks.encoding import IGNORED
from fedbias_plugin.training.schedule import clients_this_round, cosine_learning_rate, rows_this_round, seed_of_client

SEED = 42
"""The Trainer's default. OpenFedLLM never passes its ``--seed`` on: every client of every run trains with this one."""


@dataclass(frozen=True)
class TrainingSettings:
    """How every client trains; names and meanings are those of the flags.

    Every micro-batch counts the same in an optimizer step, whatever its tokens. ``num_rounds`` None keeps the learning
    rate constant. ``schedule_seed`` is that of the rows drawn each round and of the Trainer (row order, dropout), which
    then differ by client and round; None draws rows by the round number alone, and the Trainer has :data:`SEED`.
    ``seed`` and what stands below it are for terms that must know the whole run; ``seq_length`` is for the memory.
    """

    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    num_rounds: int | None = None
    max_steps: int = 10
    local_epochs: int | None = None
    gradient_checkpointing: bool = False
    schedule_seed: int | None = None
    bf16: bool = False
    seq_length: int = 512
    seed: int = SEED
    fed_alg: str = "fedavg"
    num_clients: int = 1
    sample_clients: int = 1

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> TrainingSettings:
        """Those of a run, among all its flags."""
        return cls(**{spec.name: flags[spec.name] for spec in fields(cls)})

    def learning_rate_of(self, round_idx: int) -> float:
        """Learning rate of round ``round_idx`` (from 0)."""
        if self.num_rounds is None:
            return self.learning_rate
        return cosine_learning_rate(round_idx, self.num_rounds, self.learning_rate)

    def rows_of(self, n: int, round_idx: int) -> list[int]:
        """Indices of the rows a client with ``n`` rows trains on in round ``round_idx`` (from 0)."""
        if self.local_epochs is not None:
            return list(range(n))
        return rows_this_round(
            n, round_idx, self.batch_size, self.gradient_accumulation_steps, self.max_steps, self.schedule_seed
        )

    def seed_of(self, round_idx: int, client: int) -> int:
        """The Trainer's seed for a client and round (from 0)."""
        return SEED if self.schedule_seed is None else seed_of_client(self.schedule_seed, round_idx, client)

    def steps_of(self, n: int) -> int:
        """Optimizer steps in a round of a client with ``n`` rows."""
        if self.local_epochs is None:
            return self.max_steps
        return self.local_epochs * math.ceil(math.ceil(n / self.batch_size) / self.gradient_accumulation_steps)

    def rounds_of(self, client: int, before: int | None = None) -> int:
        """In how many rounds ``client`` takes part: of all, or of those ``before`` a round (from 0)."""
        rounds = range(self.num_rounds or 0 if before is None else before)
        chosen = self.fed_alg, self.num_clients, self.sample_clients
        return sum(client in clients_this_round(*chosen, one, self.schedule_seed) for one in rounds)

    def arguments(self, round_idx: int, client: int, scratch: str, use_cpu: bool) -> TrainingArguments:
        """The Trainer's arguments for one client and round (from 0); ``scratch`` is a folder it may write to."""
        checkpointing = "activation_checkpointing"  # its name since transformers 5.2x; the old one warns there
        if checkpointing not in {field.name for field in fields(TrainingArguments)}:
            checkpointing = "gradient_checkpointing"
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            learning_rate=self.learning_rate_of(round_idx),
            lr_scheduler_type="constant",
            optim="adamw_torch",
            weight_decay=0.0,
            max_grad_norm=1.0,
            num_train_epochs=self.local_epochs or 1,
            max_steps=self.max_steps if self.local_epochs is None else -1,
            seed=self.seed_of(round_idx, client),
            bf16=self.bf16,
            use_cpu=use_cpu,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,  # a diverged client must not report a small loss
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=not use_cpu,
            # Reentrant checkpointing would cut the adapters of a frozen base off from the loss.
            **{checkpointing: self.gradient_checkpointing, f"{checkpointing}_kwargs": {"use_reentrant": False}},
        )
        use_one_gpu(arguments)
        return arguments


def use_one_gpu(arguments: TrainingArguments) -> None:
    """With several GPUs in sight the Trainer would copy the model to each and multiply the batch by their number."""
    assert arguments.device is not None  # asking for the device is what counts the GPUs
    arguments._n_gpu = 1


class ClientTrainer(Trainer):
    """:class:`transformers.Trainer` with the loss that OpenFedLLM's stack has.

    Every micro-batch's mean loss counts the same in an optimizer step. The Trainer's newer habit, a mean over all
    tokens of the step, is switched off: it would weigh micro-batches by their length and add FedProx's term once for
    each.

    Args:
        own_loss: of the task, where it has one (:class:`fedbias_plugin.tasks.base.Objective`).
        kwargs: the Trainer's own arguments.
    """

    def __init__(self, own_loss: Callable[[Any, dict[str, Any]], torch.Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = False
        self.own_loss = own_loss

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the micro-batch's trainable tokens, or of its rows' labels; or the task's own loss."""
        if self.own_loss is not None:
            loss = self.own_loss(model, inputs)
            return (loss, {"loss": loss}) if return_outputs else loss
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        labels = inputs["labels"]
        if labels.ndim > 1 and not (labels[:, 1:] != IGNORED).any():
            # The mean over no token is not a number; it stands for no loss and no gradient.
            loss = outputs["logits"][..., 0].float().sum() * 0.0
        return (loss, outputs) if return_outputs else loss


class LeanTrainer(ClientTrainer):
    """:class:`ClientTrainer` without what is only for a log, which the clients of our own hosts do not keep."""

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer would walk through all parameters in every step."""
        return 0
