"""peft's prompt tuning as the base model sees it: embeddings before those of the text, which all texts share.

``PeftModel`` puts them there itself, but takes no mask of any pattern and no beginning that is read once: what it does
is done here, on its base model (Lester et al. 2021, arXiv:2104.08691).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def virtual_tokens(model: Any) -> int:
    """Positions that a prompt-learning adapter takes before every text; 0 without one, or where it is disabled."""
    config = _active_config(model)
    return int(getattr(config, "num_virtual_tokens", None) or 0)  # what no other adapter has


def soft_prompt(model: Any) -> torch.nn.Parameter | None:
    """The embeddings (virtual tokens, width) that stand before every text, not copied; None without prompt tuning."""
    config = _active_config(model)
    if config is None or _kind(config) != "PROMPT_TUNING":
        return None
    weight: torch.nn.Parameter = model.prompt_encoder[_active(model)].embedding.weight
    return weight


def behind_prompt(model: Any, ids: Tensor, prompt: Tensor) -> Tensor:
    """Embeddings of ``prompt`` and then of ``ids``, shape (rows, virtual tokens + length, width), as peft joins them.

    Args:
        model: the ``PeftModel`` or its base.
        ids: (rows, length).
        prompt: (virtual tokens, width), or with a first dimension one for every row.
    """
    texts = model.get_input_embeddings()(ids)
    return torch.cat([prompt.to(texts).expand(len(ids), *prompt.shape[-2:]), texts], dim=1)


def _active_config(model: Any) -> Any:
    configs = getattr(model, "peft_config", None)
    if not configs or getattr(model, "_adapters_disabled", False):
        return None
    return configs.get(_active(model))


def _active(model: Any) -> str:
    name = getattr(model, "active_adapter", "default")
    return name if isinstance(name, str) else name[0]


def _kind(config: Any) -> str:
    return str(getattr(config, "peft_type", "")).split(".")[-1]
