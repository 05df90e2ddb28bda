"""Log-probabilities of sentences under any Hugging Face causal LM (METRICS.md, section 1).

``S(x) = sum_t log p(x_t | prefix, x_<t)``: the prefix is the BOS token, or EOS where the tokenizer has no BOS, exactly
once. The model is left as it was found, the global random state included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.inference import embedding_device, evaluating, scored_logits
from fedbias_plugin.evaluation.items import ScoreRequest, TokenScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ScoreRequest", "SentenceScorer", "TokenScores"]

MAX_LOGITS = 2**27
"""Scored positions times vocabulary in one forward pass: 256 MiB of logits in 16 bits, 512 MiB in float32."""
MAX_SOFTMAX = 2**22
"""Logits that are in float32 for the log-softmax at one time: 16 MiB."""


@dataclass(frozen=True)
class _Encoded:
    """One request as tokens, the prefix token first; the tokens from ``start`` on are scored."""

    index: int
    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        return len(self.ids) - self.start


class SentenceScorer:
    """Scores texts with one model, batched by length.

    Args:
        model: a causal LM, plain, quantised, spread over devices, or a ``PeftModel`` (scored with its active adapters).
        tokenizer: of the model; its padding side and padding token do not matter.
        max_batch_tokens: rows times padded length of one batch; a longer single text is a batch of its own.
        progress: called after each batch with the number of texts it held.

    Attributes:
        prefix_token: the token every text is conditioned on: BOS, else EOS.
        prefix_id: its id.

    Raises:
        UserError: the tokenizer has neither BOS nor EOS, or ``max_batch_tokens`` is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_tokens: int = 4096,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if max_batch_tokens < 1:
            raise UserError(f"a scoring batch needs at least 1 token, not {max_batch_tokens} (--bias_batch_tokens).")
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_tokens = max_batch_tokens
        self.progress = progress
        self.prefix_token, self.prefix_id = _prefix(tokenizer)

    def score(
        self, requests: Sequence[ScoreRequest], describe: Callable[[int], str] | None = None
    ) -> list[TokenScores]:
        """Log-probability of every token of every ``request.text`` given the prefix token and ``request.context``.

        The text's tokens are those of the whole string beyond the tokens of the context; white space that ends the
        context counts as the beginning of the text, as most tokenizers join it to the next word.

        Args:
            requests: what to score, in any order; neither order nor batch size changes a score (1e-3 in float32).
            describe: names request ``i`` in an error; default ``item i``.

        Returns:
            One result per request, in the order of ``requests``.

        Raises:
            UserError: a text without tokens, longer than the model allows, with tokens that the model does not have,
                or with a log-probability that is not finite. The message names the item.
        """
        name = describe or (lambda index: f"item {index}")
        encoded = self._encode(requests, name)
        self._check_model_limits(encoded, name)
        # Made before the first batch: small arrays made between large ones would pin the heap (0.5 GiB on StereoSet).
        results = [
            TokenScores(np.asarray(item.ids[item.start :], dtype=np.int64), np.empty(item.scored)) for item in encoded
        ]
        with evaluating(self.model):
            for batch in self._batches(encoded):
                for item, log_probs in zip(batch, self._log_probs(batch), strict=True):
                    if not np.isfinite(log_probs).all():
                        raise UserError(_not_finite(name(item.index)))
                    results[item.index].log_probs[:] = log_probs
                if self.progress is not None:
                    self.progress(len(batch))
        return results

    def _encode(self, requests: Sequence[ScoreRequest], name: Callable[[int], str]) -> list[_Encoded]:
        contexts = [request.context.rstrip() for request in requests]
        wholes = self._tokens([request.context + request.text for request in requests])
        skipped = [len(ids) for ids in self._tokens([context for context in contexts if context])]
        lengths = iter(skipped)
        encoded = []
        for index, (context, whole) in enumerate(zip(contexts, wholes, strict=True)):
            start = 1 + (next(lengths) if context else 0)
            if not requests[index].text.strip() or start > len(whole):
                raise UserError(f"{name(index)}: there is no text to score.")
            encoded.append(_Encoded(index, [self.prefix_id, *whole], start))
        return encoded

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids without special tokens, so that a tokenizer that adds BOS by itself does not add a second one."""
        if not texts:
            return []
        encoding = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(encoding["input_ids"])

    @property
    def longest(self) -> int | None:
        """Most tokens, the prefix among them, that the model has positions for; None when it does not say."""
        found = getattr(_text_config(self.model), "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    def _check_model_limits(self, encoded: Sequence[_Encoded], name: Callable[[int], str]) -> None:
        longest = self.longest
        embeddings = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        for item in encoded:
            if longest is not None and len(item.ids) > longest:
                raise UserError(
                    f"{name(item.index)} has {len(item.ids)} tokens (with {self.prefix_token}), more than the "
                    f"{longest} positions of the model (max_position_embeddings); shorten it or use a larger model."
                )
            if embeddings is not None and max(item.ids) >= embeddings:
                raise UserError(
                    f"{name(item.index)}: token {max(item.ids)} is beyond the model's {embeddings} embeddings; "
                    "is this the model's own tokenizer?"
                )

    def _batches(self, encoded: Sequence[_Encoded]) -> Iterator[list[_Encoded]]:
        """Longest first, so that too large a batch fails at the start."""
        most_scored = MAX_LOGITS // max(1, getattr(_text_config(self.model), "vocab_size", None) or 1)
        batch: list[_Encoded] = []
        scored = 0
        for item in sorted(encoded, key=lambda item: (-len(item.ids), item.index)):
            too_long = batch and (len(batch) + 1) * len(batch[0].ids) > self.max_batch_tokens
            if batch and (too_long or scored + item.scored > most_scored):
                yield batch
                batch, scored = [], 0
            batch.append(item)
            scored += item.scored
        if batch:
            yield batch

    def _log_probs(self, batch: Sequence[_Encoded]) -> list[np.ndarray]:
        """float64 log-probabilities of the scored tokens, one array per item of ``batch``."""
        length = max(len(item.ids) for item in batch)
        ids = torch.full((len(batch), length), self.prefix_id, dtype=torch.long)
        mask = torch.zeros((len(batch), length), dtype=torch.long)
        for row, item in enumerate(batch):
            ids[row, : len(item.ids)] = torch.tensor(item.ids)
            mask[row, : len(item.ids)] = 1
        rows = torch.cat([torch.full((item.scored,), row) for row, item in enumerate(batch)])
        positions = torch.cat([torch.arange(item.start, len(item.ids)) for item in batch])
        targets = ids[rows, positions]
        device = embedding_device(self.model)
        # The logits at position t - 1 are about the token at position t.
        logits = scored_logits(self.model, ids.to(device), mask.to(device), rows, positions - 1)
        log_probs = _target_log_probs(logits, targets.to(logits.device)).double().cpu().numpy()
        return np.split(log_probs, np.cumsum([item.scored for item in batch])[:-1])


def _target_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 log-softmax of ``logits`` (rows, vocabulary) at ``targets`` (rows,), a few rows at a time."""
    rows = max(1, MAX_SOFTMAX // logits.shape[-1])
    parts = []
    for logit_rows, target_rows in zip(logits.split(rows), targets.split(rows), strict=True):
        exact = logit_rows.float()
        parts.append(exact.gather(-1, target_rows[:, None])[:, 0] - exact.logsumexp(-1))
    return torch.cat(parts)


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    for token, token_id in (
        (tokenizer.bos_token, tokenizer.bos_token_id),
        (tokenizer.eos_token, tokenizer.eos_token_id),
    ):
        if token_id is not None:
            return str(token), int(token_id)
    raise UserError(
        "the tokenizer has neither a BOS nor an EOS token, so the first word of a sentence has nothing to be "
        "conditioned on; set bos_token in its tokenizer_config.json."
    )


def _text_config(model: Any) -> Any:
    """The configuration of the language part, also for models that see images."""
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _not_finite(item: str) -> str:
    return (
        f"{item}: the model's log-probability is not finite. The training has diverged or the weights overflow in "
        "their dtype; try float32 or bfloat16, or a smaller learning rate."
    )
