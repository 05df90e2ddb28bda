"""Prompt templates: the text a row becomes.

The texts are those OpenFedLLM formats, character for character (the blank after the instruction included), so that the
same rows give the same tokens on both hosts.

- ``alpaca``: Stanford Alpaca's prompt without input (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca).
- ``vicuna``: Vicuna v1.1's conversation prompt (Zheng et al. 2023, arXiv:2306.05685, github.com/lm-sys/FastChat).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One prompt.

    Attributes:
        prompt_format: text up to where the response begins, with ``{instruction}``.
        response_marker: the text in it after which tokens are trained; what follows it (one blank) joins the response's
            first word in most tokenizers and is trained with it.
    """

    prompt_format: str
    response_marker: str

    def prompt(self, instruction: str) -> str:
        """The text up to where the response begins, the blank before it included."""
        before, after = self.prompt_format.split("{instruction}")
        return before + instruction + after

    def text(self, instruction: str, response: str, eos: str | None) -> str:
        """The whole training text: prompt, response, and the tokenizer's EOS text (nothing when it has none)."""
        return self.prompt(instruction) + response + (eos or "")

    def response_start(self, instruction: str) -> int:
        """How many characters of :meth:`text` are not trained: everything to the end of the template's own marker.

        An instruction or a response that holds the marker itself does not move it.
        """
        return self.prompt(instruction).rindex(self.response_marker) + len(self.response_marker)


CHAT = "chat"
"""Names the tokenizer's own template, see :mod:`fedbias_plugin.tasks.chat`."""
TEMPLATES: dict[str, Template] = {
    "alpaca": Template(
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction} \n\n### Response: ",
        "\n### Response:",
    ),
    "vicuna": Template(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: {instruction} ASSISTANT: ",
        " ASSISTANT:",
    ),
}
