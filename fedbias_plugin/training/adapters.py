"""Puts a saved LoRA adapter on a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_adapter(model: PreTrainedModel, folder: str) -> PeftModel:
    """``model`` with the adapter of ``folder`` (``OUTPUT/adapter`` of a run), from safetensors only.

    Raises:
        UserError: the folder holds no adapter, or one that does not fit the model.
    """
    from peft import PeftModel

    path = Path(folder)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise UserError(f"--adapter {folder} holds no {name}; give the folder of a LoRA adapter saved by peft.")
    try:
        return PeftModel.from_pretrained(model, str(path))
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--adapter {folder} does not fit --model_name_or_path: {reason}") from error
