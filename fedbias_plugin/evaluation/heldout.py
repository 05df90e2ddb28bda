"""Loss on held-out clean rows: what debiasing costs in usefulness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.evaluation.scorer import ScoreRequest, SentenceScorer


def heldout_loss(scorer: SentenceScorer, pairs: Sequence[tuple[str, str]], max_tokens: int) -> dict[str, Any] | None:
    """Mean negative log-likelihood per response token, natural log, over rows that no client trains on.

    Args:
        scorer: of the model to measure.
        pairs: (prompt, response) texts; the response is scored given the prompt, without an end-of-text token.
        max_tokens: rows whose prompt and response are longer are left out, as training would cut them, and so are
            those that the model has no positions for.

    Returns:
        ``{"loss": nats per token, "perplexity": exp(loss), "n": rows scored, "guessing_loss": ln(vocabulary)}``, or
        None when no row is left. The perplexity is None where it is beyond every float; a loss above the last, that of
        a model to which all tokens are equally likely, is worse than guessing.
    """
    tokenizer, longest = scorer.tokenizer, min(max_tokens, scorer.longest or max_tokens)
    requests = [
        ScoreRequest(text=response, context=prompt)
        for prompt, response in pairs
        if len(tokenizer(prompt + response, add_special_tokens=False)["input_ids"]) < longest
    ]
    if not requests:
        return None
    scores = scorer.score(requests, lambda index: f"held-out row {index}")
    tokens = sum(len(score.log_probs) for score in scores)
    loss = -sum(float(score.log_probs.sum()) for score in scores) / tokens
    guessing = math.log(scorer.vocabulary)
    return {"loss": loss, "perplexity": perplexity(loss), "n": len(scores), "guessing_loss": guessing}


def perplexity(loss: float) -> float | None:
    """exp(``loss``), or None where no float can hold it.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, None)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return None
