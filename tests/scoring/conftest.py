"""Tiny random models of every supported shape, and byte-level tokenizers trained on the spot."""

import pytest

SENTENCES = [
    "The chess player was kind to the old farmer.",
    "The old farmer was rude to the chess player.",
    "Many people live in the valley, and most of them bake bread.",
    "A nurse and a smith met at the market; they spoke of the weather.",
    "It rained for three days. The river rose and the bridge fell.",
]
FAMILIES = ("llama", "mistral", "phi3", "gemma2", "gpt2")


def _tokenizer(bos: bool):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>" if bos else None, eos_token="</s>", padding_side="left"
    )


@pytest.fixture(scope="session")
def bos_tokenizer():
    """Has a BOS token and puts it before every text by itself; pads on the left and has no padding token."""
    return _tokenizer(bos=True)


@pytest.fixture(scope="session")
def eos_tokenizer():
    """Has only an EOS token."""
    return _tokenizer(bos=False)


def _config(family):
    import transformers

    shape = {
        "vocab_size": 330,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
    }
    gpt2 = {"vocab_size": 330, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "bos_token_id": 0}
    return {
        "llama": lambda: transformers.LlamaConfig(**shape),
        "mistral": lambda: transformers.MistralConfig(**shape, sliding_window=8),
        "phi3": lambda: transformers.Phi3Config(**{**shape, "pad_token_id": 1}),
        "gemma2": lambda: transformers.Gemma2Config(
            **shape, head_dim=8, sliding_window=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
        ),
        "gpt2": lambda: transformers.GPT2Config(**gpt2, eos_token_id=1),
    }[family]()


@pytest.fixture(scope="session")
def build_model():
    """``build_model(family)``: a random model whose next-token distributions are far from uniform."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)

    def build(family="llama", dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_config(family))
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.2)
        return model.to(dtype).eval()

    return build
