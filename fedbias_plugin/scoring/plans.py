"""Tokenises texts and packs them once; the result serves every client and round, and later runs from the disk."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import logging
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import cache_folder, write_bytes_atomic
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.prefix_tree import ScoringPlan, build_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the stored plans; a plan of another format is made anew."""
KEPT = 16
"""Plans kept in memory: a run needs two or three for each benchmark."""


def plans_folder() -> Path:
    """Where plans are kept between runs."""
    return cache_folder() / "plans"


class PlanCache:
    """Plans by the content of the texts and the tokenizer.

    Args:
        folder: where plans are also stored; None keeps them in memory only. A folder that cannot be written costs
            time and nothing else.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._plans: dict[str, ScoringPlan] = {}

    def plan(
        self,
        requests: Sequence[ScoreRequest],
        tokenizer: PreTrainedTokenizerBase,
        prefix_id: int,
        pack_tokens: int | None,
        name: Callable[[int], str],
    ) -> ScoringPlan:
        """The plan of ``requests``: from memory, from the disk, or made.

        Args:
            requests: what to score.
            tokenizer: of the model.
            prefix_id: token that stands before every text.
            pack_tokens: see :func:`build_plan`.
            name: names a request in an error.

        Raises:
            UserError: a text without tokens.
        """
        fingerprint = _fingerprint(tokenizer)
        if fingerprint is None:  # a tokenizer that may be another
            return _make(requests, tokenizer, prefix_id, pack_tokens, name)
        texts = [(request.context, request.text) for request in requests]
        key = _digest(json.dumps([FORMAT, fingerprint, prefix_id, pack_tokens, texts]))
        return self._kept(key, lambda: _make(requests, tokenizer, prefix_id, pack_tokens, name))

    def plan_of_tokens(
        self, texts: Sequence[Sequence[int]], starts: Sequence[int], pack_tokens: int | None
    ) -> ScoringPlan:
        """As :meth:`plan`, of texts that are token ids already; arguments as of :func:`build_plan`."""
        lengths = [len(text) for text in texts]
        ids = np.fromiter(itertools.chain.from_iterable(texts), np.int64, sum(lengths))
        arrays = [ids, np.asarray(lengths, np.int64), np.asarray(starts, np.int64)]
        content = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        key = _digest(json.dumps([FORMAT, "tokens", pack_tokens, content]))
        return self._kept(key, lambda: build_plan(texts, starts, pack_tokens))

    def _kept(self, key: str, make: Callable[[], ScoringPlan]) -> ScoringPlan:
        plan = self._plans.pop(key, None) or self._load(key)
        if plan is None:
            plan = make()
            self._store(key, plan)
        self._plans[key] = plan
        while len(self._plans) > KEPT:
            self._plans.pop(next(iter(self._plans)))
        return plan

    def _load(self, key: str) -> ScoringPlan | None:
        if self._folder is None:
            return None
        try:
            with np.load(self._folder / f"{key}.npz", allow_pickle=False) as stored:
                return ScoringPlan(**{name: stored[name] for name in stored.files})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            logger.debug("a stored scoring plan cannot be read and is made anew: %s", error)
            return None

    def _store(self, key: str, plan: ScoringPlan) -> None:
        if self._folder is None:
            return
        try:
            buffer = io.BytesIO()
            np.savez(buffer, **plan.arrays())  # type: ignore[arg-type]
            write_bytes_atomic(self._folder / f"{key}.npz", buffer.getvalue())
        except OSError as error:
            logger.debug("a scoring plan cannot be stored: %s", error)


def _fingerprint(tokenizer: Any) -> str | None:
    """Digest of all that makes the tokens; None where that is not known, as of tokenizers with code of their own."""
    import tokenizers
    import transformers

    kind = type(tokenizer)
    if not kind.__module__.startswith("transformers."):
        return None
    try:
        core = tokenizer.backend_tokenizer.to_str()
    except Exception:  # no fast core (AttributeError), or one with a part in Python, for which it has no other error
        return None
    settings = getattr(tokenizer, "split_special_tokens", None)
    return _digest(f"{kind.__qualname__} {settings} {tokenizers.__version__} {transformers.__version__} {core}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _make(
    requests: Sequence[ScoreRequest],
    tokenizer: PreTrainedTokenizerBase,
    prefix_id: int,
    pack_tokens: int | None,
    name: Callable[[int], str],
) -> ScoringPlan:
    contexts = [request.context.rstrip() for request in requests]
    wholes = _tokens(tokenizer, [request.context + request.text for request in requests])
    skipped = iter([len(ids) for ids in _tokens(tokenizer, [context for context in contexts if context])])
    starts = [1 + (next(skipped) if context else 0) for context in contexts]
    for index, (request, whole) in enumerate(zip(requests, wholes, strict=True)):
        if not request.text.strip() or starts[index] > len(whole):
            raise UserError(f"{name(index)}: there is no text to score.")
    return build_plan([[prefix_id, *whole] for whole in wholes], starts, pack_tokens)


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids without special tokens, so that a tokenizer that adds BOS by itself does not add a second one."""
    if not texts:
        return []
    encoding = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return list(encoding["input_ids"])
