"""ROUGE-L of the responses that a model writes to held-out instructions.

Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries": precision and recall are the length of the longest
common subsequence of words over the number of words of the response and of the reference; F1 is their harmonic mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.inference import embedding_device, evaluating, text_config
from fedbias_plugin.training.encoding import encode_text

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 128
ROWS_AT_ONCE = 8


def require_rouge() -> None:
    """Raise :class:`UserError` when the package that computes ROUGE-L is missing."""
    if importlib.util.find_spec("rouge_score") is None:
        raise UserError("--rouge_samples needs rouge-score, which is not installed: pip install rouge-score.")


def rouge_l(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    max_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, float | int] | None:
    """Mean ROUGE-L F1 of the model's own responses against the rows' responses.

    Args:
        model: a causal LM or a ``PeftModel``; left as it was, the global random state included.
        tokenizer: of the model.
        pairs: (prompt, response) texts.
        max_tokens: rows whose prompt is as long are left out, as training would cut their response off, and so are
            those after whose prompt the model has no positions for a response. It also limits the responses.
        progress: called with the number of rows done.

    Returns:
        ``{"f1": percent, "n": rows, "max_new_tokens": most tokens of a response}``, or None when no row is left.
    """
    new_tokens = min(MAX_NEW_TOKENS, max_tokens)
    positions = getattr(text_config(model), "max_position_embeddings", None) or max_tokens + new_tokens
    prompts, references = [], []
    for prompt, response in pairs:
        ids = _prompt_ids(prompt, tokenizer)
        if len(ids) < max_tokens and len(ids) + new_tokens <= positions:
            prompts.append(ids)
            references.append(response)
    if not prompts:
        return None
    responses = greedy_responses(model, tokenizer, prompts, new_tokens, progress)
    return {"f1": mean_f1(references, responses), "n": len(prompts), "max_new_tokens": new_tokens}


def mean_f1(references: Sequence[str], responses: Sequence[str]) -> float:
    """Mean ROUGE-L F1 in percent, words in lower case and not stemmed, as ``rouge_score`` splits them.

    Words of other letters than a to z are none to it: texts in other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, responses, strict=True)]
    return 100 * sum(scores) / len(scores)


def greedy_responses(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """What the model writes after each prompt, always the likeliest token, until it ends or has ``new_tokens``.

    Args:
        model: as for :func:`rouge_l`.
        tokenizer: of the model.
        prompts: token ids, none empty.
        new_tokens: most tokens of a response.
        progress: called with the number of prompts done.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # adapters are modules of the base
    device, greedy, texts = embedding_device(base), _greedy(base, tokenizer, new_tokens), []
    kept, base.generation_config = base.generation_config, greedy  # or the model's own settings would fill in for ours
    try:
        with evaluating(model):
            for start in range(0, len(prompts), ROWS_AT_ONCE):
                rows = prompts[start : start + ROWS_AT_ONCE]
                width = max(map(len, rows))
                padded = [[greedy.pad_token_id] * (width - len(row)) + list(row) for row in rows]
                real = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
                written = base.generate(
                    input_ids=torch.tensor(padded, device=device),
                    attention_mask=torch.tensor(real, device=device),
                    generation_config=greedy,
                )
                texts += tokenizer.batch_decode(written[:, width:], skip_special_tokens=True)
                if progress is not None:
                    progress(len(rows))
    finally:
        base.generation_config = kept
    return texts


def _prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's tokens as in training, where the blank that ends it belongs to the response's first word."""
    prompt = prompt.rstrip(" ")
    return encode_text(prompt, len(prompt), tokenizer, seq_length=10**6)["input_ids"]


def _greedy(base: Any, tokenizer: PreTrainedTokenizerBase, new_tokens: int) -> GenerationConfig:
    """Greedy search that ends where the tokenizer or the model says; of the model's own settings only its cache."""
    from transformers import GenerationConfig

    own = getattr(base.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    cache = getattr(base.generation_config, "cache_implementation", None)
    settings = {"cache_implementation": cache} if cache else {}
    return GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=sorted(ends) or None, pad_token_id=pad, **settings
    )
