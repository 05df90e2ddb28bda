"""Whether two loaded models are the same one, told from a sample of their weights, and whether two tokenizers are."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from fedbias_plugin.scoring.digest import add_tensor
from fedbias_plugin.tasks.encoding import last_call_forgotten
from fedbias_plugin.training.parameters import live_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE = 1024
"""Entries of each tensor that are looked at."""
UNTOLD = ("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype")
"""Of a config: what is another for the same model, or is told from the weights."""
TEXT = "The quick brown fox, 1984: naïve -- 「狐」\n### Response:"


def model_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over names, shapes, dtypes and a sample of the weights that are *not* trained, and of how text is cut
    and chats are written.

    Trained weights are left out, so that it stays the same over a run. It finds another model, not a forged one.
    """
    trained = {id(parameter) for parameter in live_parameters(model).values()}
    digest = hashlib.sha256(_how_text_is_cut(tokenizer))
    for name, parameter in model.named_parameters():
        add_tensor(digest, name, parameter, 0 if id(parameter) in trained else SAMPLE)
    return digest.hexdigest()


def outline_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over the config, names, shapes and dtypes of all weights, and how text is cut: over no weight's value."""
    digest = hashlib.sha256(_how_text_is_cut(tokenizer))
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in UNTOLD}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        add_tensor(digest, name, parameter, 0)
    return digest.hexdigest()


def _how_text_is_cut(tokenizer: PreTrainedTokenizerBase) -> bytes:
    chats = getattr(tokenizer, "chat_template", None) or ""
    return f"{len(tokenizer)} {tokenizer(TEXT)['input_ids']}{chats}".encode()


def base_fingerprint(model: Any) -> str:
    """sha256 over names, shapes, dtypes and a sample of the weights without adapters: what a run starts from.

    The same for a model and for a ``PeftModel`` around it, whatever the adapter holds.
    """
    prefix = getattr(getattr(model, "base_model", None), "prefix", "lora_")
    base = model.get_base_model() if getattr(model, "peft_config", None) else model
    digest = hashlib.sha256()
    for name, parameter in base.named_parameters():
        parts = [part for part in name.split(".") if part not in ("base_layer", "original_module")]
        if "modules_to_save" not in parts and not any(part.startswith(prefix) for part in parts):
            add_tensor(digest, ".".join(parts), parameter, 0 if parameter.is_meta else SAMPLE)
    return digest.hexdigest()


def tokenizer_fingerprints(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """``fingerprint``: sha256 over what makes tokens of a text; ``chat_template``: over how chats are written.

    The first is over vocabulary, merges, normalisation and special tokens: of a fast tokenizer over all that its file
    holds but truncation and padding, which are those of its last call; of a slow one over its vocabulary and how it
    cuts a text. The padding token is in neither: hosts choose it, and no number depends on it.
    """
    with last_call_forgotten(tokenizer):
        try:
            core = tokenizer.backend_tokenizer.to_str()
        except (
            Exception
        ):  # no fast core (AttributeError), or one with a part in Python, for which it has no other error
            cut = tokenizer(TEXT)["input_ids"]
            core = json.dumps([type(tokenizer).__qualname__, sorted(tokenizer.get_vocab().items()), cut])
    names = ("bos_token", "eos_token", "unk_token", "split_special_tokens")
    parts = {
        "fingerprint": [core, *(str(getattr(tokenizer, name, None)) for name in names)],
        "chat_template": getattr(tokenizer, "chat_template", None) or "",
    }
    return {name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()}
