"""What a model writes after a prompt, by always the likeliest token or by sampling; the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
                written = base.generate(
                    input_ids=torch.tensor(padded, device=device),
                    attention_mask=torch.tensor(real, device=device),
                    generation_config=config,
                )
                texts += tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
                if progress is not None:
                    progress(len(rows))
    finally:
        base.generation_config = kept
    return texts


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
