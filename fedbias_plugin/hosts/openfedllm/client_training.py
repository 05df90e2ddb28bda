"""What the plugin does around the training of one client in a patched OpenFedLLM."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.ledger import state_name
from fedbias_plugin.federation.saving import CARD
from fedbias_plugin.federation.state_store import state_bytes
from fedbias_plugin.files import write_text_atomic
from fedbias_plugin.hosts.openfedllm.client_data import ClientData
from fedbias_plugin.hosts.openfedllm.host_rows import Formatting, encode_dataset
from fedbias_plugin.options import split_list
from fedbias_plugin.preflight import check_responses_fit
from fedbias_plugin.tasks.encoding import Feature, last_call_forgotten, trainable_tokens
from fedbias_plugin.training.isolation import preserved_forward
from fedbias_plugin.training.models import check_fits_model
from fedbias_plugin.training.schedule import seed_of_client
from fedbias_plugin.updates.base import Update

logger = logging.getLogger(__name__)

HostState: TypeAlias = dict[str, torch.Tensor]
"""A state as the host holds it, on whatever device."""
PLAIN_ALGORITHMS = ("fedavgm", "fedadagrad", "fedyogi", "fedadam")
"""Algorithms whose clients train as FedAvg's do; OpenFedLLM's factories know them by misspelt names or not at all."""


class ClientTraining:
    """Prepares the arguments of the host's trainer factory.

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
        """EOS, where the host found no token to pad with (it takes the unknown token, which many tokenizers lack)."""
        if tokenizer.pad_token is not None:
            return
        if tokenizer.eos_token is None:
            raise UserError("The tokenizer has no pad_token, unk_token or eos_token; set eos_token in its config.")
        tokenizer.pad_token = tokenizer.eos_token
        self._pad_is_ours = True

    def let_gradients_in(self, model: Any, training_args: Any) -> None:
        """What upstream does and some forks forget: checkpointing cuts adapters off from the loss without it."""
        if self.pinned and training_args.gradient_checkpointing and hasattr(model, "peft_config"):
            base = model.get_base_model()
            if not hasattr(base, "_require_grads_hook"):
                base.enable_input_require_grads()

    def check_clients(self, tokenizer: Any) -> None:
        """Refuse, before anything is trained, a client none of whose rows has a token to train on."""
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

    def prepare(self, arguments: dict[str, Any], client: int, round_idx: int, mu: float | None) -> None:
        """Change the arguments of the host's trainer factory to what the client is to train.

        Args:
            arguments: by name; changed in place.
            client: whose turn it is.
            round_idx: from 0.
            mu: the client's own, for FedProx; None where the host has none.
        """
        rows, tokenizer, training_args = (arguments[name] for name in ("local_dataset", "tokenizer", "training_args"))
        self.leave_wandb_to_the_plugin(training_args)
        self.set_length_and_seed(training_args, len(rows), client, round_idx)
        if self.finds_responses:
            features = self._encode(rows, tokenizer)
            check_fits_model([feature["input_ids"] for feature in features], arguments["model"])
            cut = sum(not trainable_tokens(feature) for feature in features)
            if cut and client not in self._warned:
                self._warned.add(client)
                logger.warning(
                    "client %d: --seq_length %d cuts the response off entirely in %d of %d rows of this round",
                    *(client, self.script_args.seq_length, cut, len(features)),
                )
            if self.pinned:
                arguments["data_collator"].remember(features, by_text=self._pad_is_ours)
            else:
                arguments["local_dataset"] = features
        fed_args = arguments["fed_args"] = copy.copy(self.fed_args)
        if mu is not None:
            fed_args.prox_mu = mu
        if fed_args.fed_alg in PLAIN_ALGORITHMS:
            fed_args.fed_alg = "fedavg"

    def leave_wandb_to_the_plugin(self, training_args: Any) -> None:
        """The Trainer's own W&B callback would redefine the step of every metric, and start it anew for each client."""
        if "wandb" in training_args.report_to and "wandb" in split_list(self.plugin.track):
            training_args.report_to = [name for name in training_args.report_to if name != "wandb"]
            if not self._said_wandb:
                logger.warning("--log_with wandb is left out: --track wandb logs the run, losses included.")
            self._said_wandb = True

    def set_length_and_seed(self, training_args: Any, rows: int, client: int, round_idx: int) -> None:
        """``--local_epochs`` as optimizer steps, which SCAFFOLD's control variates are divided by, and the seed.

        Today's Trainer ends every epoch with a step, however few batches are left for it. The old one carries them on
        into the next epoch, and drops those at the end.
        """
        epochs, seed = self.plugin.local_epochs, self.plugin.schedule_seed
        if epochs is not None:
            batches = math.ceil(rows / training_args.per_device_train_batch_size)
            accumulation = training_args.gradient_accumulation_steps
            steps = epochs * batches // accumulation if self.pinned else epochs * math.ceil(batches / accumulation)
            training_args.max_steps = max(1, steps)
        if seed is not None:
            training_args.seed = seed_of_client(seed, round_idx, client)

    def _encode(self, dataset: Any, tokenizer: Any) -> list[Feature]:
        if self.formatting is None:
            raise UserError("This host never called get_formatting_prompts_func; its rows cannot be read.")
        length = self.script_args.seq_length
        with last_call_forgotten(tokenizer):
            return encode_dataset(dataset, self.formatting, self.response_marker, tokenizer, length)


def wrap_method(trainer: Any, name: str, around: Callable[..., Any]) -> None:
    """Let ``trainer.name(...)`` be ``around(its own method, ...)``.

    The trainer holds no reference to itself, which would keep it alive, its optimizer with it.
    """
    method, itself = getattr(type(trainer), name), weakref.ref(trainer)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return around(method.__get__(itself()), *args, **kwargs)

    setattr(trainer, name, wrapped)


def watch_training(
    trainer: Any, around: contextlib.AbstractContextManager[Any], on_result: Callable[[Any], None]
) -> None:
    """Let ``trainer.train()`` run inside ``around``, and hand what it returns to ``on_result``."""

    def train(inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with around:
            result = inner(*args, **kwargs)
        on_result(result)
        return result

    wrap_method(trainer, "train", train)


def add_card_to_saves(trainer: Any, card: str) -> None:
    """Let what the host saves with ``trainer`` say what it was trained on: a README.md in the place of peft's."""
    default = trainer.args.output_dir

    def save_model(inner: Callable[..., Any], output_dir: str | None = None, *args: Any, **kwargs: Any) -> Any:
        result = inner(output_dir, *args, **kwargs)
        folder = Path(output_dir or default)
        if folder.is_dir():
            write_text_atomic(folder / CARD, card)
        return result

    wrap_method(trainer, "save_model", save_model)


def preserved(model: Any) -> contextlib.ExitStack:
    """Remember ``forward`` of ``model`` and of the base under its adapter, until the stack is closed."""
    stack = contextlib.ExitStack()
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    stack.enter_context(preserved_forward(model, base))
    return stack


class ControlVariates:
    """SCAFFOLD's c_i of every client, which the host's script keeps to itself: what its next training is to start from.

    They pass by twice: the trainer is built with a client's c_i, and hands the new one to the script. There they are
    read for checkpoints, and put in where the script has another: after a resume, and after an update that the server
    refused.

    Attributes:
        known: client id -> c_i, for every client that has trained with SCAFFOLD.
    """

    def __init__(self) -> None:
        self.known: dict[int, HostState] = {}
        self._differs_from_script: set[int] = set()
        self._before_training: dict[int, HostState] = {}

    def new_round(self) -> None:
        """Nobody has trained yet."""
        self._before_training.clear()

    def give(self, client: int, arguments: dict[str, Any]) -> None:
        """Put c_i into the arguments that a trainer is built with, where the script has another."""
        given = arguments.get("local_auxiliary")
        if given is None:
            return
        if client in self._differs_from_script:
            self._differs_from_script.remove(client)
            given = {name: self.known[client][name].to(tensor) for name, tensor in given.items()}
            arguments["local_auxiliary"] = given
        self._before_training[client] = given

    def watch(self, client: int, trainer: Any) -> None:
        """Read the c_i that ``trainer`` hands to the script."""

        def get_auxiliary_param(inner: Callable[[], tuple[HostState, Any]]) -> tuple[HostState, Any]:
            new, change = inner()
            self.known[client] = new
            return new, change

        if hasattr(type(trainer), "get_auxiliary_param"):
            wrap_method(trainer, "get_auxiliary_param", get_auxiliary_param)

    def count(self, update: Update, model: Any) -> None:
        """Add to what the ledger knows of ``update`` the control variates, which the script moves itself.

        c comes and the change of c_i goes, each of the shape of theta_i.
        """
        size = state_bytes(update.state)
        update.payload = {state_name(model): size, "control_delta": size}
        update.received = {"control_variate": size}

    def take_back(self, client: int) -> None:
        """The client's update was refused: it keeps the c_i that it trained with."""
        if client in self._before_training:
            self.replace(client, self._before_training[client])

    def replace(self, client: int, control: Mapping[str, torch.Tensor]) -> None:
        """The client's next training starts from ``control``, whatever the script holds."""
        self.known[client] = dict(control)
        self._differs_from_script.add(client)
