"""What a hook does around the training of one client in a patched OpenFedLLM."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import write_text_atomic
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.host_rows import Formatting, encode_dataset
from fedbias_plugin.hosts.saving import CARD
from fedbias_plugin.options import split_list
from fedbias_plugin.preflight import check_responses_fit
from fedbias_plugin.training.encoding import Feature, last_call_forgotten, trainable_tokens
from fedbias_plugin.training.isolation import preserved_forward
from fedbias_plugin.training.local_trainer import seed_of_client
from fedbias_plugin.training.models import check_fits_model

logger = logging.getLogger(__name__)

PLAIN_ALGORITHMS = ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
"""Algorithms whose clients train as FedAvg's do; OpenFedLLM's factories know them by misspelt names or not at all."""


class ClientTraining:
    """Prepares the arguments of the host's trainer factory and watches the trainer it returns.

    Args:
        data: the clients' rows.
        pinned: whether this is the pinned stack.
    """

    def __init__(self, data: ClientData, pinned: bool) -> None:
        self.data, self.pinned = data, pinned
        self.script_args, self.fed_args, self.plugin = data.script_args, data.fed_args, data.plugin
        self.response_marker = ""
        self.formatting: Formatting | None = None
        self._pad_is_ours = False
        self._warned: set[int] = set()
        self._said_wandb = False

    @property
    def finds_responses(self) -> bool:
        """Whether rows are texts with one response to be found: SFT, except FedLLM-Bench's multi-turn tasks."""
        return not self.data.is_dpo and not getattr(self.script_args, "multi_turn_task", False)

    def set_pad_token(self, tokenizer: Any) -> None:
        """EOS, where the host found no token to pad with (it takes the unknown token, which many tokenizers lack).

        Raises:
            UserError: there is no EOS token either.
        """
        if tokenizer.pad_token is not None:
            return
        if tokenizer.eos_token is None:
            raise UserError("The tokenizer has no pad_token, unk_token or eos_token; set eos_token in its config.")
        tokenizer.pad_token = tokenizer.eos_token
        self._pad_is_ours = True

    def leave_wandb_to_the_plugin(self, training_args: Any) -> None:
        """The Trainer's own W&B callback would redefine the step of every metric, and start it anew for each client."""
        if "wandb" in training_args.report_to and "wandb" in split_list(self.plugin.track):
            training_args.report_to = [name for name in training_args.report_to if name != "wandb"]
            if not self._said_wandb:
                logger.warning("--log_with wandb is left out: --track wandb logs the run, losses included.")
            self._said_wandb = True

    def let_gradients_in(self, model: Any, training_args: Any) -> None:
        """What upstream does and some forks forget: checkpointing cuts adapters off from the loss without it."""
        if self.pinned and training_args.gradient_checkpointing and hasattr(model, "peft_config"):
            base = model.get_base_model()
            if not hasattr(base, "_require_grads_hook"):
                base.enable_input_require_grads()

    def arguments_of_client(self, prox_mu: float | None) -> Any:
        """``fed_args`` for the factory: with the client's mu, and an algorithm that the factory knows."""
        arguments = copy.copy(self.fed_args)
        if prox_mu is not None:
            arguments.prox_mu = prox_mu
        if arguments.fed_alg in PLAIN_ALGORITHMS:
            arguments.fed_alg = "fedavg"
        return arguments

    def set_length_and_seed(self, training_args: Any, rows: int, client: int, round_idx: int) -> None:
        """``--local_epochs`` as optimizer steps, which SCAFFOLD's control variates are divided by, and the seed."""
        epochs, seed = self.plugin.local_epochs, self.plugin.schedule_seed
        if epochs is not None:
            batches = math.ceil(rows / training_args.per_device_train_batch_size)
            training_args.max_steps = self._steps(epochs, batches, training_args.gradient_accumulation_steps)
        if seed is not None:
            training_args.seed = seed_of_client(seed, round_idx, client)

    def _steps(self, epochs: int, batches: int, accumulation: int) -> int:
        """Optimizer steps of so many epochs over so many batches.

        Today's Trainer ends every epoch with a step, however few batches are left for it. The old one carries them on
        into the next epoch, and drops those at the end.
        """
        return max(1, epochs * batches // accumulation) if self.pinned else epochs * math.ceil(batches / accumulation)

    def check_clients(self, tokenizer: Any) -> None:
        """Refuse, before anything is trained, a client none of whose rows has a token to train on.

        Raises:
            UserError: naming the client and its first row.
        """
        if not self.finds_responses:
            return
        for client, dataset in enumerate(self.data.datasets):
            chunks = (range(start, min(start + 64, len(dataset))) for start in range(0, len(dataset), 64))
            encoded = (self._encode(dataset.select(chunk), tokenizer) for chunk in chunks)
            check_responses_fit(
                client,
                rows=len(dataset),
                trainable=any(trainable_tokens(feature) for features in encoded for feature in features),
                first=self.data.name_row(client, 0),
                seq_length=self.script_args.seq_length,
            )

    def encode(self, dataset: Any, model: Any, tokenizer: Any, client: int) -> list[Feature]:
        """The rows of a round with labels; warns once for a client some of whose responses are cut off.

        Raises:
            UserError: the model has no positions or embeddings for them.
        """
        features = self._encode(dataset, tokenizer)
        check_fits_model([feature["input_ids"] for feature in features], model)
        cut = sum(not trainable_tokens(feature) for feature in features)
        if cut and client not in self._warned:
            self._warned.add(client)
            logger.warning(
                "client %d: --seq_length %d cuts the response off entirely in %d of %d rows of this round",
                *(client, self.script_args.seq_length, cut, len(features)),
            )
        return features

    def give_rows(self, arguments: dict[str, Any], features: list[Feature]) -> None:
        """Put the encoded rows where the stack's trainer takes them from."""
        if self.pinned:
            arguments["data_collator"].remember(features, by_text=self._pad_is_ours)
        else:
            arguments["local_dataset"] = features

    def _encode(self, dataset: Any, tokenizer: Any) -> list[Feature]:
        if self.formatting is None:
            raise UserError("This host never called get_formatting_prompts_func; its rows cannot be read.")
        with last_call_forgotten(tokenizer):
            return encode_dataset(
                dataset, self.formatting, self.response_marker, tokenizer, self.script_args.seq_length
            )


def watch_training(
    trainer: Any, around: contextlib.AbstractContextManager[Any], on_result: Callable[[Any], None]
) -> None:
    """Let ``trainer.train()`` run inside ``around``, and hand its result to ``on_result``.

    Args:
        trainer: the host's; changed in place.
        around: entered before training and left after it.
        on_result: called with what ``train()`` returned.
    """
    inner = trainer.train

    def train(*args: Any, **kwargs: Any) -> Any:
        del trainer.train  # which would keep the trainer, its optimizer with it, alive
        with around:
            result = inner(*args, **kwargs)
        on_result(result)
        return result

    trainer.train = train


def add_card_to_saves(trainer: Any, card: str) -> None:
    """Let what the host saves with ``trainer`` say what it was trained on.

    Args:
        trainer: the host's; changed in place.
        card: README.md of the folder, in the place of peft's or trl's own.
    """
    inner, itself = type(trainer).save_model, weakref.ref(trainer)  # a reference would keep the optimizer alive

    def save_model(output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
        living: Any = itself()
        result = inner(living, output_dir, *args, **kwargs)
        folder = Path(output_dir or living.args.output_dir)
        if folder.is_dir():
            write_text_atomic(folder / CARD, card)
        return result

    trainer.save_model = save_model


def preserved(model: Any) -> contextlib.ExitStack:
    """Remember ``forward`` of ``model`` and of the base under its adapter, until the stack is closed."""
    stack = contextlib.ExitStack()
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    stack.enter_context(preserved_forward(model, base))
    return stack
