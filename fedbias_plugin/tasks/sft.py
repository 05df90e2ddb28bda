"""Supervised fine-tuning: instruction and response in a prompt template, with the loss on the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fedbias_plugin.options import option
from fedbias_plugin.tasks.base import Task
from fedbias_plugin.tasks.chat import ChatTemplate
from fedbias_plugin.tasks.encoding import Feature, encode_rows
from fedbias_plugin.tasks.templates import CHAT, TEMPLATES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.data.rows import Row


@dataclass
class Sft(Task):
    """The task of OpenFedLLM's ``main_sft.py``."""

    template: str = option(
        "alpaca",
        "prompt template; chat is the one that an instruct model's tokenizer brings",
        choices=(*TEMPLATES, CHAT),
        of_host=True,
    )
    _chat: ChatTemplate | None = field(default=None, init=False, repr=False)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the tokenizer's own template where it is asked for.

        Raises:
            UserError: the tokenizer has none, or none that can be used.
        """
        self._chat = ChatTemplate(tokenizer) if self.template == CHAT else None

    def prompt(self, instruction: str) -> str:
        """In the template."""
        return self._chat.prompt(instruction) if self._chat else TEMPLATES[self.template].prompt(instruction)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, seq_length: int) -> list[Feature]:
        """As :func:`fedbias_plugin.tasks.encoding.encode_rows` and :meth:`ChatTemplate.encode` do.

        Raises:
            UserError: a row's text is not Unicode text (it holds a lone surrogate), or the tokenizer's own template
                cannot take it; the row is named.
        """
        if self._chat:
            return [self._chat.encode(row, seq_length) for row in rows]
        return encode_rows(rows, tokenizer, TEMPLATES[self.template], seq_length)
