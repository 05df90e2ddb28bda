"""What a sequence classifier has that no language model has: a head, from random weights, and a padding token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_heads(model: PreTrainedModel) -> list[str]:
    """The modules of a sequence classifier that no language model has (``score``; ``pre_classifier``, ``classifier``):
    those beside its base model. None of another model.
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return []
    base = model.base_model_prefix
    return [name for name, part in model.named_children() if name != base and any(True for _ in part.parameters())]


def set_pad_token(config: Any) -> None:
    """A decoder finds a row's last token by the padding token, as which EOS serves where there is none."""
    if getattr(config, "pad_token_id", None) is None:
        eos = getattr(config, "eos_token_id", None)
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What torch draws in this block follows from ``seed``; its own random state comes back."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def without_load_report(is_on: bool) -> Iterator[None]:
    """Without Transformers' table of weights that a checkpoint lacks, where those are told and drawn here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if is_on:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
