"""lm-evaluation-harness's model ``fedbias``: its own Hugging Face model, but log-likelihoods by this package's scorer.

What the harness does around a forward pass (tokens, BOS, windows, truncation, generation) stays its own, so that the
values are its own too. Importing this needs lm-eval.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.scoring.inference import embedding_device, evaluating
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.scorer import SentenceScorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOWS_AT_ONCE = 10**9
"""Of rolling log-likelihoods: all of them, which the scorer packs by itself."""
ROWS_AT_ONCE = 8
"""Texts that are generated at once in a run."""
Encoded = dict[tuple[str, bool | None], list[int]]


class HarnessModel(HFLM):
    """Takes every argument of the harness's ``hf``, such as ``pretrained``, ``peft``, ``dtype``, and one more.

    Args:
        pretrained: hub name or folder of a causal LM, or a model.
        batch_tokens: rows times padded length of one scoring batch.
        arguments: of ``hf``; its ``batch_size`` is that of generation alone.

    Raises:
        UserError: the model is no causal LM.
    """

    def __init__(self, pretrained: Any, *, batch_tokens: int = 4096, **arguments: Any) -> None:
        super().__init__(pretrained, **arguments)
        if self.backend != "causal":
            raise UserError("the model fedbias scores causal LMs; take --model hf for others.")
        self._encoded: Encoded = {}
        self._scorer: SentenceScorer | None = None
        self._is_quiet = False
        if isinstance(pretrained, str):
            tokens = int(batch_tokens)
            self._scorer = SentenceScorer(self.model, self.tokenizer, max_batch_tokens=tokens, plans=PlanCache())

    @classmethod
    def of(cls, scorer: SentenceScorer, tokenizer: PreTrainedTokenizerBase, encoded: Encoded) -> HarnessModel:
        """The model of a scorer, which is neither moved, tied nor switched to ``eval()`` here.

        Args:
            scorer: of the model.
            tokenizer: a copy of the model's (:func:`own_tokenizer`), as the harness gives it a padding token.
            encoded: texts that this tokenizer has made tokens of, filled here.
        """
        model = scorer.model
        outline = SimpleNamespace(config=model.config, device=embedding_device(model))
        made = cls(outline, tokenizer=tokenizer, batch_size=ROWS_AT_ONCE)
        made._model, made._scorer, made._encoded, made._is_quiet = model, scorer, encoded, True
        return made

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads, behind a soft prompt."""
        longest = self._scorer.longest if self._scorer else None
        return min(super().max_length, longest or 10**9)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
        """As the harness does it, each text once."""
        if others:
            return list(super().tok_encode(string, add_special_tokens=add_special_tokens, **others))
        key = string, add_special_tokens
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, add_special_tokens=add_special_tokens)
        return self._encoded[key]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation, and whether it is what greedy decoding would give."""
        pairs = [request.args for request in requests]
        self._encode({continuation for context, continuation in pairs if context == ""}, False)
        wholes = {context + continuation for context, continuation in pairs if context}
        self._encode(wholes | {context.rstrip() for context, _ in pairs if context}, None)
        return list(super().loglikelihood(requests, disable_tqdm=disable_tqdm))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of every text, in the harness's windows."""
        kept: int | str = self.batch_size_per_gpu
        self.batch_size_per_gpu: int | str = WINDOWS_AT_ONCE
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm))
        finally:
            self.batch_size_per_gpu = kept

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the harness generates, the model left as it was."""
        with evaluating(self.model):
            return list(super().generate_until(requests, disable_tqdm=disable_tqdm))

    def _encode(self, strings: set[str], add_special_tokens: bool | None) -> None:
        """Make tokens of many texts at once; the harness itself does those that begin with a BOS token."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        settings = {} if special is None else {"add_special_tokens": special}
        begin = self.tokenizer.decode(self.prefix_token_id)
        new = [one for one in strings if (one, add_special_tokens) not in self._encoded and not one.startswith(begin)]
        if new:
            found = self.tokenizer(new, return_attention_mask=False, verbose=False, **settings)["input_ids"]
            self._encoded.update(((one, add_special_tokens), ids) for one, ids in zip(new, found, strict=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """As the harness's: a text that is too long loses its beginning."""
        texts, starts, most = [], [], self.max_length
        for name, context, continuation in requests:
            text = (context + continuation)[-(most + 1) :]
            starts.append(len(text) - len(continuation))
            texts.append(text)
            if not continuation or starts[-1] < 1:
                shown = "a text" if name is None else quoted("".join(name)[-80:])
                raise UserError(f"{shown}: {len(continuation)} tokens to score; there must be 1 to {most}.")
        assert self._scorer is not None, "it is there once the model is"
        with tqdm(
            total=len(texts), disable=disable_tqdm or self._is_quiet, desc="Running loglikelihood requests"
        ) as bar:
            before = self._scorer.progress
            self._scorer.progress = before or bar.update
            try:
                sums, likeliest = self._scorer.score_tokens(texts, starts)
            finally:
                self._scorer.progress = before
        found = list(zip(sums.tolist(), likeliest.tolist(), strict=True))
        for (name, *_), answer in zip(requests, found, strict=True):
            if name is not None:
                self.cache_hook.add_partial("loglikelihood", name, answer)
        return found


def own_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy, for :meth:`HarnessModel.of`."""
    return copy.deepcopy(tokenizer)


register_model("fedbias")(HarnessModel)
