"""Models as tests load and adapt them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.preflight import check_model
from fedbias_plugin.training.models import load_model, load_tokenizer
from fedbias_plugin.training.trainables import Lora


def load_model_and_tokenizer(
    name_or_path: str, *, trust_remote_code: bool = False, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What :func:`load_model` (with its ``options``) and :func:`load_tokenizer` give of a folder, hub name or tiny."""
    path = check_model(name_or_path)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    return load_model(path, trust_remote_code=trust_remote_code, **options), tokenizer


def add_lora(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: int,
    seed: int,
    dropout: float = 0.05,
    target_modules: str | list[str] | None = None,
) -> Any:
    """``model`` with an adapter."""
    modules = ",".join(target_modules) if isinstance(target_modules, list) else target_modules
    return Lora(r, alpha, dropout, modules).prepare(model, seed)


def save_classifier(folder: Path, labels: Sequence[str], **config: Any) -> Path:
    """A sequence classifier of random weights with these labels and the bundled tokenizer, in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    torch.manual_seed(0)
    made = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        **config,
    )
    LlamaForSequenceClassification(made).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
