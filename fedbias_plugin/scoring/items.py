"""What the scorer and the benchmarks share: requests, token scores, reductions, and reading a data file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedbias_plugin.errors import UserError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Scores = TypeVar("Scores")


@dataclass(frozen=True)
class ScoreRequest:
    """A text whose tokens are scored, given an unscored context.

    Attributes:
        text: what is scored. The model reads ``context + text`` as one string, so the caller puts the space between.
        context: what the model reads first.
    """

    text: str
    context: str = ""


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities of the scored tokens of one request, context tokens left out.

    Attributes:
        token_ids: shape (tokens,), int64.
        log_probs: shape (tokens,), natural log, computed in float32 and kept as float64.
    """

    token_ids: IntArray
    log_probs: FloatArray

    def reduced(self, reduction: str) -> float:
        """The sentence score: ``sum`` of the log-probabilities, or their ``mean`` per token (docs/metrics.md)."""
        return float(self.log_probs.mean() if reduction == "mean" else self.log_probs.sum())


def with_shared_prefix(scores: TokenScores, reference: TokenScores) -> TokenScores:
    """``scores`` with the log-probabilities of the tokens that open both sentences taken from ``reference``.

    A causal LM gives a common beginning the same score in both sentences. Rounding differs between batches, and in a
    16-bit model by enough to decide a close comparison; taking one value for both leaves that to the words that differ.
    """
    length = min(len(scores.token_ids), len(reference.token_ids))
    differing = np.flatnonzero(scores.token_ids[:length] != reference.token_ids[:length])
    common = int(differing[0]) if len(differing) else length
    return TokenScores(scores.token_ids, np.concatenate([reference.log_probs[:common], scores.log_probs[common:]]))


def subset(scores: Scores, indices: Sequence[int]) -> Scores:
    """A dataclass of per-item lists and arrays, of the items at ``indices`` only; what is neither stays."""
    chosen = np.asarray(indices, dtype=np.int64)
    parts: dict[str, Any] = {}
    for spec in dataclasses.fields(scores):  # type: ignore[arg-type]
        value = getattr(scores, spec.name)
        if isinstance(value, np.ndarray):
            parts[spec.name] = value[chosen]
        elif isinstance(value, list):
            parts[spec.name] = [value[index] for index in chosen]
    return dataclasses.replace(scores, **parts)  # type: ignore[type-var]


def ids_hash(ids: Iterable[str]) -> str:
    """sha256 (hexadecimal) of the ids, in their order, joined by line feeds."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def read_data_file(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Text of a UTF-8 data file (a byte order mark is dropped) and the sha256 of its bytes.

    Raises:
        UserError: the file cannot be read, is empty, or is not UTF-8 (the line is named).
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if not data.strip():
        raise UserError(f"{path}: the file is empty.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error
    return text, hashlib.sha256(data).hexdigest()
