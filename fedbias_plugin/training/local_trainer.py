"""What a client does in one round: train the live model on its rows, starting from the global state.

The training itself is :class:`transformers.Trainer` with OpenFedLLM's settings: AdamW (not fused), weight decay 0,
gradients clipped at norm 1, a learning rate that is constant within a round and falls by a cosine over the rounds.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from fedbias_plugin.errors import UserError
from fedbias_plugin.state import State
from fedbias_plugin.training.client_trainer import (
    AfterStep,
    ClientTrainer,
    ControlCorrection,
    ProximalTerm,
    use_one_gpu,
)
from fedbias_plugin.training.collator import PaddingCollator
from fedbias_plugin.training.encoding import Feature, trainable_tokens
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.schedule import cosine_learning_rate, rows_this_round
from fedbias_plugin.training.states import live_parameters, read_state, write_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalTrainingSettings:
    """How every client trains.

    Attributes:
        batch_size: rows of a micro-batch.
        gradient_accumulation_steps: micro-batches of an optimizer step; each counts the same, whatever its tokens.
        learning_rate: of the first round.
        num_rounds: rounds of the run, over which the learning rate falls to 1e-6; None keeps it constant.
        max_steps: optimizer steps of a round, on freshly drawn rows. Ignored with ``local_epochs``.
        local_epochs: epochs over all the client's rows, the last partial batch included.
        pad_token_id: of the tokenizer.
        gradient_checkpointing: recompute activations to save memory.
        seed: of the Trainer (row order within a round, dropout). It is *not* the run's seed: OpenFedLLM never passes
            its ``--seed`` on, so that every client of every run trains with the Trainer's default, 42.
        schedule_seed: of the rows drawn each round, and then of the Trainer's seed too, which differs by client and
            round; None draws rows by the round number alone and keeps ``seed``.
        bf16: automatic mixed precision in bfloat16 on top of the weights' dtype.
        output_dir: a folder the Trainer may make; nothing is kept in it. A temporary one when None.
        disable_tqdm: no progress bar of the Trainer's own.
    """

    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: float = 2e-5
    num_rounds: int | None = None
    max_steps: int = 10
    local_epochs: int | None = None
    pad_token_id: int = 0
    gradient_checkpointing: bool = False
    seed: int = 42
    schedule_seed: int | None = None
    bf16: bool = False
    output_dir: str | Path | None = None
    disable_tqdm: bool = True

    def learning_rate_of(self, round_idx: int) -> float:
        """Learning rate of round ``round_idx`` (from 0)."""
        if self.num_rounds is None:
            return self.learning_rate
        return cosine_learning_rate(round_idx, self.num_rounds, self.learning_rate)

    def seed_of(self, round_idx: int, client: int) -> int:
        """The Trainer's seed (row order, dropout) in round ``round_idx`` (from 0) of client ``client``."""
        return self.seed if self.schedule_seed is None else seed_of_client(self.schedule_seed, round_idx, client)

    def rows_of(self, n: int, round_idx: int) -> list[int]:
        """Indices of the rows a client with ``n`` rows trains on in round ``round_idx`` (from 0)."""
        if self.local_epochs is not None:
            return list(range(n))
        return rows_this_round(
            n, round_idx, self.batch_size, self.gradient_accumulation_steps, self.max_steps, self.schedule_seed
        )


def seed_of_client(schedule_seed: int, round_idx: int, client: int) -> int:
    """The Trainer's seed under ``--schedule_seed``, another one for every client and round (from 0); 31 bits."""
    return random.Random(f"{schedule_seed}/train/{round_idx}/{client}").getrandbits(31)


@dataclass(frozen=True)
class ClientUpdate:
    """What a client sends back.

    Attributes:
        state: theta_i, on the CPU.
        train_loss: mean over the optimizer steps, FedProx's term included; not finite when training has diverged.
        steps: optimizer steps done.
        new_local_control: SCAFFOLD's new c_i, to be kept for the client; None for other algorithms.
        control_delta: new c_i minus old c_i, for the server; None for other algorithms.
    """

    state: State
    train_loss: float
    steps: int
    new_local_control: State | None = None
    control_delta: State | None = None


def train_client(
    model: PreTrainedModel,
    features: Sequence[Feature],
    *,
    client: int,
    round_idx: int,
    settings: LocalTrainingSettings,
    fed_alg: str,
    global_state: State,
    prox_mu: float = 0.0,
    local_control: State | None = None,
    global_control: State | None = None,
    after_step: Callable[[], None] | None = None,
) -> ClientUpdate:
    """Load ``global_state`` into ``model``, train it as client ``client`` in round ``round_idx`` (from 0).

    The model is left with the client's weights; its mode, its cache setting and the global random states are left as
    they were. The same call gives the same bytes on a CPU.

    Args:
        model: the one live model, with a LoRA adapter or whole.
        features: all rows of the client, see :func:`fedbias_plugin.training.encoding.encode_rows`.
        client: id, for messages.
        round_idx: decides learning rate and rows.
        settings: see :class:`LocalTrainingSettings`.
        fed_alg: ``fedprox`` adds the proximal term, ``scaffold`` corrects by control variates.
        global_state: theta_t.
        prox_mu: mu of FedProx.
        local_control: SCAFFOLD's c_i; None for zeros.
        global_control: SCAFFOLD's c; None for zeros.
        after_step: called after every optimizer step; what it raises ends the training.

    Raises:
        UserError: no row has a trainable token (before anything is trained).
    """
    if not any(trainable_tokens(feature) for feature in features):
        raise UserError(
            f"Client {client} has no trainable token in its {len(features)} rows: the response of every row is cut "
            "off. Raise --seq_length."
        )
    rows = [features[index] for index in settings.rows_of(len(features), round_idx)]
    if not any(trainable_tokens(feature) for feature in rows):
        logger.warning("Client %d, round %d: every row drawn has its response cut off.", client, round_idx + 1)
    write_state(model, global_state)
    correction = _correction(global_state, local_control, global_control) if fed_alg == "scaffold" else None
    learning_rate = settings.learning_rate_of(round_idx)
    with training_mode(model, settings.gradient_checkpointing), tempfile.TemporaryDirectory() as scratch:
        seed = settings.seed_of(round_idx, client)
        arguments = training_arguments(settings, learning_rate, seed, scratch, _on_cpu(model))
        steps, train_loss = _train(
            model,
            rows,
            arguments,
            settings.pad_token_id,
            ProximalTerm(live_parameters(model), global_state, prox_mu) if fed_alg == "fedprox" else None,
            [
                *([ControlCorrection(live_parameters(model), correction)] if correction is not None else []),
                *([AfterStep(after_step)] if after_step is not None else []),
            ],
        )
    state = read_state(model)
    if correction is None:
        return ClientUpdate(state, train_loss, steps)
    return ClientUpdate(
        state, train_loss, steps, *_new_control(global_state, state, local_control, correction, steps * learning_rate)
    )


def training_arguments(
    settings: LocalTrainingSettings, learning_rate: float, seed: int, scratch: str, use_cpu: bool
) -> TrainingArguments:
    """The Trainer's arguments for one client and round."""
    checkpointing = "activation_checkpointing"  # its name since transformers 5.2x; the old one warns there
    if checkpointing not in {field.name for field in fields(TrainingArguments)}:
        checkpointing = "gradient_checkpointing"
    epochs = settings.local_epochs
    arguments = TrainingArguments(
        output_dir=str(settings.output_dir or scratch),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        num_train_epochs=epochs or 1,
        max_steps=settings.max_steps if epochs is None else -1,
        seed=seed,
        bf16=settings.bf16,
        use_cpu=use_cpu,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,  # a diverged client must not report a small loss
        disable_tqdm=settings.disable_tqdm,
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
        # Reentrant checkpointing would cut the adapters of a frozen base off from the loss.
        **{checkpointing: settings.gradient_checkpointing, f"{checkpointing}_kwargs": {"use_reentrant": False}},
    )
    use_one_gpu(arguments)
    return arguments


def _train(
    model: PreTrainedModel,
    rows: list[Feature],
    arguments: TrainingArguments,
    pad_token_id: int,
    proximal: ProximalTerm | None,
    callbacks: list[TrainerCallback],
) -> tuple[int, float]:
    """Optimizer steps done and mean training loss."""
    trainer = ClientTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=PaddingCollator(pad_token_id),
        proximal=proximal,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    result = trainer.train()
    return int(result.global_step), float(result.training_loss)


def _correction(global_state: State, local_control: State | None, global_control: State | None) -> State:
    """``c - c_i`` of SCAFFOLD (Karimireddy et al. 2020, arXiv:1910.06378, Algorithm 1)."""
    return {
        name: _or_zeros(global_control, name, theta) - _or_zeros(local_control, name, theta)
        for name, theta in global_state.items()
    }


def _new_control(
    global_state: State, state: State, local_control: State | None, correction: State, step_size: float
) -> tuple[State, State]:
    """Option II: ``c_i' = (theta_t - theta_i) / (K lr) - (c - c_i)``, and ``c_i' - c_i``.

    ``step_size`` is K lr with K the optimizer steps really done; OpenFedLLM takes ``max_steps``, the same number when
    it trains by steps.
    """
    new = {name: (theta - state[name]) / step_size - correction[name] for name, theta in global_state.items()}
    return new, {name: value - _or_zeros(local_control, name, value) for name, value in new.items()}


def _or_zeros(control: State | None, name: str, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if control is None else control[name]


def _on_cpu(model: Any) -> bool:
    return next(model.parameters()).device.type == "cpu"
