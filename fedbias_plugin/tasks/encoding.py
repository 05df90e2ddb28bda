"""Rows as token ids and labels: the loss is on the response only, and the response is found by its text.

OpenFedLLM looks for the *tokens* of the response marker, cut to fit Llama-2's tokenizer; with another tokenizer it
finds nothing and trains on nothing, silently. Here the whole text is tokenized once, and a token is trained when its
characters reach beyond the template's response marker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError
from fedbias_plugin.tasks.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of a token without loss."""

Feature = dict[str, list[int]]
"""``input_ids``, ``attention_mask`` and ``labels``, lists of one length."""


class Rendered(str):
    """A prompt with all its special tokens in it: a tokenizer adds none, and no blank at its end is the response's.

    Attributes:
        end: the token that ends a response to it; None where the tokenizer's EOS does.
    """

    end: int | None = None


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, template: Template, seq_length: int
) -> list[Feature]:
    """Tokenize ``rows`` with the tokenizer's own special tokens, cut to ``seq_length`` tokens.

    EOS ends every response that is not cut, and is trained, also when it serves as the padding token. BOS is never
    trained and never doubled.

    Raises:
        UserError: a row's text is not Unicode text (it holds a lone surrogate); the row is named.
    """
    features = []
    for row in rows:
        text = template.text(row.instruction, row.response, tokenizer.eos_token)
        check_is_text(text, row)
        features.append(encode_text(text, template.response_start(row.instruction), tokenizer, seq_length))
    return features


def check_is_text(text: str, row: Row) -> None:
    """Refuse the text of ``row`` where it holds half a character.

    Tokenizers disagree on what else to do: TypeError, an unknown token, another letter.

    Raises:
        UserError: naming the row.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"Row {row.id} holds half a character (lone surrogate U+{ord(text[error.start]):04X}); its source was "
            "cut or converted wrongly."
        ) from None


def trainable_tokens(feature: Feature) -> int:
    """How many tokens of ``feature`` have a loss. The first token has none: nothing predicts it."""
    return sum(label != IGNORED for label in feature["labels"][1:])


def encode_text(text: str, start: int, tokenizer: PreTrainedTokenizerBase, seq_length: int) -> Feature:
    """``text`` cut to ``seq_length`` tokens; trained are the tokens that reach beyond character ``start``."""
    special = not isinstance(text, Rendered)
    options = {"truncation": True, "max_length": seq_length, "add_special_tokens": special, "verbose": False}
    if tokenizer.is_fast:
        encoding = tokenizer(text, return_offsets_mapping=True, **options)
        ids = list(encoding["input_ids"])
        trained = [end > start for _, end in encoding["offset_mapping"]]
    else:
        ids = list(tokenizer(text, **options)["input_ids"])
        prompt_ids = tokenizer(text[:start], add_special_tokens=special, verbose=False)["input_ids"]
        shared = common_prefix(ids, prompt_ids)
        trained = [position >= shared for position in range(len(ids))]
    if tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2:
        ids, trained = ids[1:], trained[1:]
    labels = [token if wanted else IGNORED for token, wanted in zip(ids, trained, strict=True)]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def common_prefix(first: Sequence[object], second: Sequence[object]) -> int:
    """How many tokens (or characters) two sequences begin with in common."""
    length = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        length += 1
    return length


@contextmanager
def last_call_forgotten(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """A fast tokenizer keeps the truncation and padding of its last call, and would save them as its own.

    They come back at the end: what a host saves itself stays as it would be without the plugin.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if truncation:
            backend.enable_truncation(**truncation)
        if padding:
            backend.enable_padding(**padding)
