"""What a model writes after a prompt, by always the likeliest token or by sampling; the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedTokenizerBase

ROWS_AT_ONCE = 8


def written_responses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    progress: Callable[[int], None] | None = None,
    ends: Collection[int | None] = (),
    *,
    seed: int | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
) -> list[str]:
    """What the model writes after each prompt until it ends or has ``new_tokens``.

    Args:
        model: a causal LM or a ``PeftModel``; left as it was, the global random state included.
        tokenizer: of the model.
        prompts: token ids, none empty.
        new_tokens: most tokens of a response.
        progress: called with the number of prompts done.
        ends: further tokens that end a response.
        seed: of the sampling, each token from the model's whole distribution at temperature 1; None always takes the
            likeliest token. What is drawn depends on ``rows_at_once`` too.
        rows_at_once: prompts of a batch.
    """
    import torch

    from fedbias_plugin.scoring.inference import embedding_device, evaluating

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters are modules of the base
    device, config, texts = embedding_device(base), _config(base, tokenizer, new_tokens, ends, seed), []
    kept, base.generation_config = base.generation_config, config  # or the model's own settings would fill in for ours
    try:
        with evaluating(model):
            if seed is not None:
                torch.manual_seed(seed)  # within `evaluating`, which puts the random states back
            for start in range(0, len(prompts), rows_at_once):
                rows = prompts[start : start + rows_at_once]
                width = max(map(len, rows))
                padded = [[config.pad_token_id] * (width - len(row)) + list(row) for row in rows]
                real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
                inputs = _inputs(model, torch.tensor(padded, device=device), torch.tensor(real, device=device))
                written = base.generate(**inputs, generation_config=config)
                if "input_ids" in inputs:  # of embeddings only what is new comes back
                    written = written[:, width:]
                texts += tokenizer.batch_decode(written, skip_special_tokens=True)
                if progress is not None:
                    progress(len(rows))
    finally:
        base.generation_config = kept
    return texts


def _inputs(model: Any, ids: Tensor, real: Tensor) -> dict[str, Tensor]:
    """What the base model goes on with: ids and mask, both padded on the left, a soft prompt after the padding.

    ``PeftModel.generate`` would put the prompt before the padding, where an attention window ends too early.
    """
    import torch

    from fedbias_plugin.scoring.soft_prompts import behind_prompt, soft_prompt

    prompt = soft_prompt(model)
    if prompt is None:
        return {"input_ids": ids, "attention_mask": real}
    embedded, before = behind_prompt(model, ids, prompt), len(prompt)
    mask = torch.cat([torch.ones_like(real[:, :1]).expand(-1, before), real], dim=1)
    places = torch.arange(mask.shape[1], device=mask.device).repeat(len(mask), 1)
    padding = (real == 0).sum(1, keepdim=True)  # swap the two blocks in front of the text
    places = torch.where(
        places < padding, places + before, torch.where(places < padding + before, places - padding, places)
    )
    rows = torch.arange(len(mask), device=mask.device)[:, None]
    return {"inputs_embeds": embedded[rows, places], "attention_mask": mask[rows, places]}


def _config(
    base: Any, tokenizer: PreTrainedTokenizerBase, new_tokens: int, ends: Collection[int | None], seed: int | None
) -> GenerationConfig:
    """A response ends where prompts, tokenizer or model say; of the model's own settings only its cache stays."""
    from transformers import GenerationConfig

    own = getattr(base.generation_config, "eos_token_id", None)
    stops = {*ends, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops, default=0)
    cache = getattr(base.generation_config, "cache_implementation", None)
    settings: dict[str, Any] = {"cache_implementation": cache} if cache else {}
    if seed is not None:
        settings |= {"top_k": 0, "top_p": 1.0, "temperature": 1.0}  # Transformers would draw from the first 50 alone
    return GenerationConfig(
        do_sample=seed is not None,
        max_new_tokens=new_tokens,
        eos_token_id=sorted(stops) or None,
        pad_token_id=pad,
        **settings,
    )
