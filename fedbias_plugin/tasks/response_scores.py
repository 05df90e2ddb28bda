"""The loss of a causal LM on responses, each given its prompt: held-out rows and clients' own test rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.tasks.base import RowScores
from fedbias_plugin.tasks.encoding import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.scoring.scorer import SentenceScorer


def response_scores(
    pairs: Sequence[tuple[str, str]], scorer: SentenceScorer, seq_length: int, name: Callable[[int], str]
) -> RowScores:
    """Negative log-likelihood (nats) of every response given its prompt, without an end-of-text token.

    NaN for rows whose prompt and response are longer than ``seq_length``, as training would cut them, and for those
    that the model has no positions for.

    Args:
        pairs: (prompt, response).
        scorer: of the model.
        seq_length: tokens of a training row.
        name: names pair ``i`` in an error.
    """
    tokenizer, longest = scorer.tokenizer, min(seq_length, scorer.longest or seq_length)
    requests, skipped, places = [], [], []
    for place, (prompt, response) in enumerate(pairs):
        request, of_prompt = _request(prompt, response, tokenizer)
        if _length(request.context + request.text, tokenizer) < longest:
            requests.append(request)
            skipped.append(of_prompt)
            places.append(place)
    nll, tokens = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    scores = scorer.score(requests, lambda index: name(places[index]))
    for place, score, start in zip(places, scores, skipped, strict=True):
        log_probs = score.log_probs[start:]
        nll[place], tokens[place] = -float(log_probs.sum()), len(log_probs)
    return RowScores(nll, tokens)


def _request(prompt: str, response: str, tokenizer: PreTrainedTokenizerBase) -> tuple[ScoreRequest, int]:
    """What is scored of a row, and how many tokens at its beginning are the prompt's: white space that ends a prompt.

    The scorer puts BOS in front itself.
    """
    context = prompt.removeprefix(tokenizer.bos_token or "")
    if not isinstance(prompt, Rendered):
        return ScoreRequest(response, context), 0
    return ScoreRequest(response.strip(), context), _length(context, tokenizer) - _length(context.rstrip(), tokenizer)


def _length(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
