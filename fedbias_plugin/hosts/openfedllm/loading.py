"""Loads models as OpenFedLLM means it, on today's Transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers


class AutoModelForCausalLM:
    """Stands in the place of Transformers' class in a patched script."""

    @staticmethod
    def from_pretrained(name: str, *args: Any, torch_dtype: Any = None, **kwargs: Any) -> Any:
        """The model in float32 unless ``torch_dtype`` is given.

        The host passes ``torch_dtype=None`` for that; today None means the checkpoint's own dtype, such as bfloat16.
        """
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        return transformers.AutoModelForCausalLM.from_pretrained(name, *args, dtype=dtype, **kwargs)
