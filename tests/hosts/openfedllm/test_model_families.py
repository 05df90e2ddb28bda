"""LLaMA 3, Mistral, Phi-3 and Gemma 2 in a patched host: tiny random models, tokenizers of the family's shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.runner import run_script, sft_flags

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the pinned libraries have none of these but Llama")

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
}
# special tokens: beginning, end, unknown, padding, as the family's tokenizer has them
SPECIAL = {
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", None, None),
    "mistral": ("<s>", "</s>", "<unk>", None),
    "phi3": ("<s>", "<|endoftext|>", "<unk>", "<|endoftext|>"),
    "gemma2": ("<bos>", "<eos>", "<unk>", "<pad>"),
}


def write_tokenizer(folder: Path, family: str) -> int:
    """Byte-level BPE for LLaMA 3, blanks as U+2581 for the others (with one before the text, except Gemma's)."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bos, eos, unk, pad = SPECIAL[family]
    special = list(dict.fromkeys(token for token in (pad, unk, bos, eos) if token))
    texts = ["### Instruction: Say it. ### Response: It is so."] * 3
    if family == "llama":
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
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=start)
    names = {"bos_token": bos, "eos_token": eos, "unk_token": unk, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{name: token for name, token in names.items() if token}
    )
    fast.save_pretrained(folder)
    return len(fast)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_the_family_trains_in_a_patched_host(double, tmp_path, host_data, small_data, family):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / family
    words = write_tokenizer(folder, family)
    config = AutoConfig.for_model(family, vocab_size=words, **SIZES, **FAMILIES[family], pad_token_id=0)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    plan_patch(str(double)).write()
    output = tmp_path / "out"
    flags = ["--num_rounds", "1", "--scenario", "1B2C", "--sample_clients", "3", "--client_samples", "8"]
    flags += [
        "--aggregation",
        "bama",
        "--data_dir",
        str(small_data),
        "--bias_benchmarks",
        "crows_pairs",
        "--bama_crows_fraction",
        "0.5",
    ]
    run = run_script(double, "main_sft.py", *sft_flags(folder, host_data, output), *flags, log=tmp_path / "log")
    assert run.code == 0, run.text[-3000:]
    metrics = next(output.iterdir()) / "metrics.jsonl"
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert all(client["train_loss"] > 0 and client["update_norm"] > 0 for client in last["clients"].values())
