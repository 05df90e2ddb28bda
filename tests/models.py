"""Models as tests load and adapt them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
