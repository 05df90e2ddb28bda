"""Small models whose tokenizers have chat templates of the shapes of Llama 3, Gemma 2 and Phi 3; all written here."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.families import FAMILIES, SIZES, write_tokenizer

# Headers around the role, BOS written by the template, texts trimmed.
LLAMA3 = (
    "{{ bos_token }}{% for turn in messages %}"
    "{{ '<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n' + turn.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# No system role, roles must alternate, the assistant is called model.
GEMMA2 = (
    "{{ bos_token }}{% for turn in messages %}"
    "{% if turn.role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% if (turn.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must take turns') }}{% endif %}"
    "{% set who = 'model' if turn.role == 'assistant' else turn.role %}"
    "{{ '<start_of_turn>' + who + '\n' + turn.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# No BOS, a system message is left out in silence, texts are not trimmed, EOS after the last turn.
PHI3 = (
    "{% for turn in messages %}{% if turn.role in ('user', 'assistant') %}"
    "{{ '<|' + turn.role + '|>\n' + turn.content + '<|end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TEMPLATES = {"llama": LLAMA3, "gemma2": GEMMA2, "phi3": PHI3}
SPECIAL = {
    "llama": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "gemma2": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|end|>"],
}


def write_chat_tokenizer(folder: Path, family: str, template: str | None = None) -> int:
    """The family's tokenizer with its special tokens of a chat and a template; gives the number of tokens."""
    from tokenizers import decoders
    from transformers import AddedToken, AutoTokenizer

    write_tokenizer(folder, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Phi 3's take the white space after them with them.
    special = [AddedToken(token, rstrip=family == "phi3", normalized=False) for token in SPECIAL[family]]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    blanks = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.backend_tokenizer.decoder = decoders.ByteLevel() if family == "llama" else blanks
    tokenizer.chat_template = template or TEMPLATES[family]
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def write_chat_model(folder: Path, family: str, template: str | None = None) -> None:
    """A model of 2 layers, always the same one, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    words = write_chat_tokenizer(folder, family, template)
    config = AutoConfig.for_model(family, vocab_size=words, **SIZES, **FAMILIES[family], pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
