"""Tokenizers of every shape and 2-layer random models, built here; nothing is downloaded."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizer, PreTrainedTokenizerFast

from fedbias_plugin.data.rows import Row
from fedbias_plugin.tasks.templates import TEMPLATES

CORPUS = [
    TEMPLATES[name].text(f"What grows in the north {i}?", f"Barley and pears grow there, {i} of them.", "")
    for name in TEMPLATES
    for i in range(40)
]
VOCABULARY = 400


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make_row(number=0, instruction="What grows in the north?", response="Barley and pears."):
    return Row(f"clean:{number}", instruction, response, False, "clean")


def _byte_level(special, add_bos=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{add_bos} $A", special_tokens=[(add_bos, tokenizer.token_to_id(add_bos))]
        )
    return tokenizer


def llama3_like():
    """Byte-level BPE, adds BOS itself, no unknown token, no padding token."""
    bos, eos = "<|begin_of_text|>", "<|end_of_text|>"
    return PreTrainedTokenizerFast(tokenizer_object=_byte_level([bos, eos], bos), bos_token=bos, eos_token=eos)


def llama2_like():
    """Blanks become U+2581 and words carry the blank before them; byte fallback, unknown token, adds BOS itself."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=2 * VOCABULARY, special_tokens=special)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def gpt2_like():
    """Byte-level BPE with one special token for everything, which it never adds by itself; padding is EOS."""
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_byte_level([end]), bos_token=end, eos_token=end)
    tokenizer.pad_token = end
    return tokenizer


class SlowTokenizer(PreTrainedTokenizer):
    """One token a character, without offsets, adds BOS itself: the path of tokenizers written in Python."""

    def __init__(self, **kwargs):
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self):
        return 256

    def get_vocab(self):
        return {chr(i): i for i in range(256)} | self.added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        return list(text)

    def _convert_token_to_id(self, token):
        return ord(token) if len(token) == 1 and ord(token) < 256 else self.unk_token_id

    def _convert_id_to_token(self, index):
        return chr(index)

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [self.bos_token_id, *token_ids_0]


TOKENIZERS = {"llama3": llama3_like, "llama2": llama2_like, "gpt2": gpt2_like, "slow": SlowTokenizer}


@pytest.fixture(scope="session")
def tokenizers():
    return {name: make() for name, make in TOKENIZERS.items()}


_SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": dict(_SIZES),
    "mistral": {**_SIZES, "sliding_window": 32},
    "phi3": {**_SIZES, "original_max_position_embeddings": 128},
    "gemma2": {**_SIZES, "head_dim": 8, "sliding_window": 32, "query_pre_attn_scalar": 8},
    "gpt2": {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128, "resid_pdrop": 0.0,
             "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


def random_model(family="llama", seed=0, **changes):
    """A 2-layer model of the family with random weights; always the same ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(family, **{**FAMILIES[family], **changes})
        return AutoModelForCausalLM.from_config(config).eval()


def features_of(*lengths, prompt=2, vocabulary=64):
    """Rows of the given lengths with arbitrary fixed tokens; the first ``prompt`` tokens are not trained."""
    rows = []
    for row, length in enumerate(lengths):
        ids = [(7 * row + 5 * i * i + 3) % vocabulary for i in range(length)]
        labels = [-100] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": labels[:length]})
    return rows


@pytest.fixture
def make():
    """The builders of this file, for tests."""

    class Builders:
        model = staticmethod(random_model)
        features = staticmethod(features_of)
        row = staticmethod(make_row)
        families = tuple(FAMILIES)

    return Builders
