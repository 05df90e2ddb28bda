"""Saves the global model: a LoRA adapter that peft loads, or the whole model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.training.models import bars_on_terminals_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_global_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write ``model`` (safetensors) and its tokenizer to ``folder``, which appears whole or not at all.

    A LoRA model writes its adapter alone. An existing ``folder`` is replaced.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with bars_on_terminals_only():
        model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
