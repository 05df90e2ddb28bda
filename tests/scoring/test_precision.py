"""A float32 model scored in bfloat16: near the float32 values, and a model that nobody has touched."""

from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
import transformers

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring import fast_linears, precision
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.original_scores import OriginalScores
from fedbias_plugin.scoring.scorer import SentenceScorer

WIDE = {"vocab_size": 330, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
ENDS = ("met", "met a nurse", "were rude to the smith", "live in the valley", "baked bread", "spoke of the weather")
REQUESTS = [
    *(
        ScoreRequest(f"{who} {end} on day {day}.")
        for who in ("The farmer", "A nurse")
        for end in ENDS
        for day in (1, 2)
    ),
    ScoreRequest(" It rained.", context="The chess player met a nurse."),
]
NEAR = 0.15
"""Nats a text, of about 30 tokens whose logits have a standard deviation of 2 and steps of 2^-8 of themselves."""


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**WIDE, bos_token_id=0, eos_token_id=1, initializer_range=0.1)
    return transformers.LlamaForCausalLM(config).eval()


def gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=330, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1)
    return transformers.GPT2LMHeadModel(config).eval()


def with_lora(model):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()


def with_prompt(model):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)).eval()


MODELS = {
    "plain": llama,
    "lora": lambda: with_lora(llama()),
    "soft prompt": lambda: with_prompt(llama()),
    "gpt2": gpt2,
}


def sums(model, tokenizer, dtype):
    return np.array([one.log_probs.sum() for one in SentenceScorer(model, tokenizer, dtype=dtype).score(REQUESTS)])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fewest", [1, 10**9], ids=["copies", "no copies"])
@pytest.mark.parametrize("name", MODELS)
def test_values_are_near_those_in_float32_and_the_model_keeps_every_byte(name, fewest, bos_tokenizer, monkeypatch):
    monkeypatch.setattr(fast_linears, "FEWEST_TOKENS", fewest)
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact, rounded = (sums(model, bos_tokenizer, dtype) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - rounded).max() < NEAR < np.std(exact)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and after[key].dtype == torch.float32 for key in before)
    assert not any("forward" in part.__dict__ for part in model.modules())
    np.testing.assert_array_equal(sums(model, bos_tokenizer, "float32"), exact)


@pytest.mark.filterwarnings("ignore")
def test_a_model_trains_on_after_it_was_scored_in_bfloat16(bos_tokenizer):
    model = with_lora(llama())
    sums(model, bos_tokenizer, "bfloat16")
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    grads = [part.grad for name, part in model.named_parameters() if "lora_" in name]
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_layers_give_bfloat16_and_the_head_of_a_cpu_float32_and_all_is_put_back():
    """In bfloat16 a logit of 16 has steps of an eighth: more error than all layers make."""
    model = llama()
    head, layer = model.lm_head, model.model.layers[0].mlp.up_proj
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(settings, "fp32_precision", None)
    states = torch.ones(1, 3, 64)
    with torch.inference_mode(), precision.scoring_kernels(model, 10**4, "bfloat16"):
        assert (layer(states).dtype, head(states).dtype) == (torch.bfloat16, torch.float32)
    assert not {"forward"} & {*head.__dict__, *layer.__dict__}
    assert (layer(states).dtype, torch.is_autocast_enabled("cpu")) == (torch.float32, False)
    assert getattr(settings, "fp32_precision", None) == before


def test_kept_scores_of_the_original_model_are_of_one_type(bos_tokenizer, tmp_path):
    kept, model = OriginalScores(tmp_path), llama()
    found = {}
    for dtype in ("float32", "bfloat16", "bfloat16"):
        scorer = SentenceScorer(model, bos_tokenizer, originals=kept, dtype=dtype)
        found.setdefault(dtype, []).append(np.array([one.log_probs.sum() for one in scorer.score(REQUESTS)]))
    assert len(list(tmp_path.iterdir())) == 2
    assert (found["float32"][0] != found["bfloat16"][0]).any()
    np.testing.assert_array_equal(*found["bfloat16"])


def test_a_bfloat16_model_is_scored_as_ever(build_model, bos_tokenizer):
    model = build_model(dtype=torch.bfloat16)
    np.testing.assert_array_equal(*(sums(model, bos_tokenizer, dtype) for dtype in ("float32", "bfloat16")))


def test_other_types_and_quantised_bases_are_refused_in_a_sentence(build_model, bos_tokenizer):
    with pytest.raises(UserError, match="float32, and this one is in float16: leave the flag out"):
        SentenceScorer(build_model(dtype=torch.float16), bos_tokenizer, dtype="bfloat16")
    quantised = build_model()
    quantised.config.quantization_config = SimpleNamespace()
    with pytest.raises(UserError, match="a quantised model computes in a type of its own"):
        SentenceScorer(quantised, bos_tokenizer, dtype="bfloat16")
    SentenceScorer(quantised, bos_tokenizer)


def test_a_model_whose_code_mixes_types_is_told_of(build_model, bos_tokenizer):
    """As some mixtures of experts do: they add what a layer gives to a tensor of their own, in float32."""

    def gathered(module, given, output):
        rows = output.flatten(0, -2)
        return torch.zeros(rows.shape).index_add_(0, torch.arange(len(rows)), rows).view(output.shape)

    model = build_model()
    model.model.layers[0].mlp.down_proj.register_forward_hook(gathered)
    sums(model, bos_tokenizer, "float32")
    with pytest.raises(UserError, match=r"cannot be scored in bfloat16 .*give --scoring_dtype float32"):
        sums(model, bos_tokenizer, "bfloat16")


@pytest.mark.parametrize(
    ("flags", "missing"),
    [("fpu amx_bf16", False), ("fpu avx512_bf16", False), ("fpu avx2", True), ("avx_bf16", True), (None, True)],
)
def test_units_are_read_from_the_cpus_flags(flags, missing, build_model, tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    if flags:
        info.write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr(precision, "CPU_INFO", info)
    assert bool(precision.units_missing(build_model())) is missing
