"""The chat template that a tokenizer brings: rows in the form that an instruct model was taught."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedbias_plugin.data.rows import Chat, Row
from fedbias_plugin.errors import UserError, first_line, quoted
from fedbias_plugin.tasks.encoding import IGNORED, Feature, Rendered, check_is_text, encode_text
from fedbias_plugin.tasks.templates import CHAT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[tuple[str, str]]

INSTEAD = "Give --template alpaca"
PROBE = "A quiet word"
ONE_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"
"""Before a template that writes today's date: rows have the same tokens every day. The day is Llama 3.1's default."""


class ChatTemplate:
    """The chat template of a tokenizer. A system message is put before the user's first turn where it has no such role.

    Args:
        tokenizer: of an instruct model.

    Raises:
        UserError: the tokenizer has no chat template, or none that takes a question and an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._eos = tokenizer, ""
        self._end: int | None = None
        try:
            self._source: str = tokenizer.get_chat_template()
        except ValueError:
            raise UserError(
                f"--template {CHAT}: the tokenizer of this model has no chat template of its own (is it an instruct "
                f"model?). {INSTEAD}."
            ) from None
        if "strftime_now" in self._source:
            self._source = ONE_DAY + self._source
        prompt, whole = self._render([("user", "a")]), self._render([("user", "a"), ("assistant", PROBE)])
        if PROBE not in whole[len(prompt) :] or not whole.startswith(prompt):
            raise UserError(
                f"--template {CHAT}: the chat template of this model's tokenizer writes an answer elsewhere than right "
                f"after its prompt, or not at all. {INSTEAD}."
            )
        _, _, ending = whole.rpartition(PROBE)
        ids = tokenizer(ending.strip(), add_special_tokens=False)["input_ids"]
        if not ids:  # nothing ends a response
            self._eos = tokenizer.eos_token or ""
        elif ids[0] in tokenizer.added_tokens_decoder:
            self._end = ids[0]
        self._has_system = self._writes_system()

    def prompt(self, instruction: str) -> Rendered:
        """The text up to where the response begins, special tokens included.

        Raises:
            UserError: the template refuses the turns.
        """
        prompt = Rendered(self._render(self._turns(instruction)))
        prompt.end = self._end
        return prompt

    def encode(self, row: Row, seq_length: int) -> Feature:
        """The row as tokens, of which the response and what ends its turn are trained.

        White space around the response is left out, and so is that after the end of its turn.

        Raises:
            UserError: its text is not Unicode text, the template refuses its turns, or its prompt's tokens are not
                those that its whole text begins with; the row is named.
        """
        check_is_text(row.instruction + row.response, row)
        turns = self._turns(row.instruction)
        where = f"row {row.id}"
        whole = self._render([*turns, ("assistant", row.response.strip())], where).rstrip() + self._eos
        ids, prompt = self._ids(whole, seq_length), self._ids(self._render(turns, where), seq_length)
        if ids[: len(prompt)] != prompt:
            raise UserError(
                f"--template {CHAT}: where the response of {where} begins cannot be told, as its prompt alone has "
                f"other tokens than within the whole text. {INSTEAD}, or leave the row out."
            )
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}

    def _turns(self, instruction: str) -> Turns:
        turns: Turns = instruction.turns if isinstance(instruction, Chat) else (("user", instruction),)
        if turns[0][0] != "system" or self._has_system:
            return turns
        (_, system), *talk = turns
        first = [role for role, _ in talk].index("user")
        talk[first] = ("user", f"{system}\n\n{talk[first][1]}")
        return talk

    def _writes_system(self) -> bool:
        """Whether the template takes a system message: some refuse it, some leave it out."""
        try:
            return PROBE in self._render([("system", PROBE), ("user", "a")])
        except UserError:
            return False

    def _render(self, turns: Turns, where: str = "") -> str:
        """The text of the turns of ``where``; where the last one is a user's, up to where the response begins."""
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": role, "content": text} for role, text in turns],
                    chat_template=self._source,
                    add_generation_prompt=turns[-1][0] != "assistant",
                    tokenize=False,
                )
            )
        except Exception as error:  # of Jinja, whatever a template of the hub does with these turns
            raise UserError(
                f"--template {CHAT}: the chat template of this model's tokenizer refuses "
                f"{where or quoted(turns[0][1])} (turns: {', '.join(role for role, _ in turns[:6])}): "
                f"{first_line(error)}. {INSTEAD}."
            ) from None

    def _ids(self, text: str, seq_length: int) -> list[int]:
        return encode_text(Rendered(text), 0, self._tokenizer, seq_length)["input_ids"]
