"""Tiny random models of the families in ``configs/models``, with tokenizers of the family's shape."""

from __future__ import annotations

from pathlib import Path

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 64},
    "phi3": {"original_max_position_embeddings": 512},
    "gemma2": {"head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8},
    "gpt2": {},
}
# special tokens: beginning, end, unknown, padding, as the family's tokenizer has them
SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", None, None),
    "mistral": ("<s>", "</s>", "<unk>", None),
    "phi3": ("<s>", "<|endoftext|>", "<unk>", "<|endoftext|>"),
    "gemma2": ("<bos>", "<eos>", "<unk>", "<pad>"),
    "gpt2": ("<|endoftext|>", "<|endoftext|>", None, None),
}
BYTE_LEVEL = ("llama", "gpt2")


def write_tokenizer(folder: Path, family: str) -> int:
    """Byte-level BPE for LLaMA 3 and GPT-2, blanks as U+2581 for the others (with one before the text, except Gemma's).

    GPT-2's puts no token before a text.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos, unk, pad = SPECIAL[family]
    special = list(dict.fromkeys(token for token in (pad, unk, bos, eos) if token))
    texts = ["### Instruction: Say it. ### Response: It is so."] * 3
    if family in BYTE_LEVEL:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=unk, byte_fallback=True, fuse_unk=True))
        blanks = normalizers.Replace(" ", "▁")
        prefix = [] if family == "gemma2" else [normalizers.Prepend("▁")]
        tokenizer.normalizer = normalizers.Sequence([*prefix, blanks])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    start = [(bos, tokenizer.token_to_id(bos))]
    if family != "gpt2":
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=start)
    names = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: token for name, token in names.items() if token}
    )
    fast.save_pretrained(folder)
    return len(fast)


def write_model(folder: Path, family: str) -> None:
    """A model of 2 layers in bfloat16, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    words = write_tokenizer(folder, family)
    config = AutoConfig.for_model(family, vocab_size=words, **SIZES, **FAMILIES[family], pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
