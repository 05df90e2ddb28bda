"""Which models take prefix trees, and that trees give the values of the plain texts."""

import logging

import numpy as np
import peft
import pytest
import torch
import transformers

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring import ability, fast_linears
from fedbias_plugin.scoring import scorer as scorer_module
from fedbias_plugin.scoring.ability import Ability, find_ability
from fedbias_plugin.scoring.forward import HOOKED, SLICED, WHOLE
from fedbias_plugin.scoring.inference import evaluating
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.scorer import SentenceScorer

BEGINNING = "The chess player and the old farmer"
REQUESTS = [
    *(ScoreRequest(f"{BEGINNING} {end}.") for end in ("met", "met a nurse", "were rude to the smith", "bake bread")),
    *(ScoreRequest(f" {end}.", context=f"{BEGINNING} met a nurse.") for end in ("It rained", "The river rose")),
]
SHAPE = {"vocab_size": 330, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LONG = {"intermediate_size": 48, "max_position_embeddings": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
CONFIGS = {
    "mistral": lambda: transformers.MistralConfig(**SHAPE, **LONG, num_key_value_heads=2, sliding_window=90),
    "gemma2": lambda: transformers.Gemma2Config(
        **SHAPE, **LONG, num_key_value_heads=2, head_dim=8, sliding_window=90, final_logit_softcapping=2.0
    ),
    "qwen2": lambda: transformers.Qwen2Config(**SHAPE, **LONG, num_key_value_heads=2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SHAPE, **LONG),
    "opt": lambda: transformers.OPTConfig(
        **SHAPE, ffn_dim=48, max_position_embeddings=96, word_embed_proj_dim=32, pad_token_id=1
    ),
    "bloom": lambda: transformers.BloomConfig(vocab_size=330, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: transformers.MptConfig(vocab_size=330, d_model=32, n_layers=2, n_heads=4),
    "lfm2": lambda: transformers.Lfm2Config(
        **{**SHAPE, "num_hidden_layers": 3},
        **LONG,
        num_key_value_heads=2,
        layer_types=["conv", "conv", "full_attention"],
    ),
    "mamba": lambda: transformers.MambaConfig(vocab_size=330, hidden_size=32, num_hidden_layers=2),
}
TREES = ("mistral", "gemma2", "qwen2", "gpt_neox", "opt")
PLAIN = ("bloom", "mpt", "lfm2", "mamba")


def build(family, dtype=torch.float32, scale=6):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model


def one_by_one(model, tokenizer, request):
    """docs/metrics.md read aloud."""
    context = tokenizer.encode(request.context, add_special_tokens=False) if request.context else []
    ids = [0, *tokenizer.encode(request.context + request.text, add_special_tokens=False)]
    with torch.no_grad():
        log_probs = torch.log_softmax(model.eval()(torch.tensor([ids])).logits[0].float(), dim=-1)
    return [log_probs[t - 1, ids[t]].item() for t in range(1 + len(context), len(ids))]


def able(model):
    with evaluating(model):
        return find_ability(model, 330, 96)


@pytest.mark.parametrize("family", TREES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trees_give_the_values_of_the_plain_texts(family, attention, bos_tokenizer):
    model = build(family)
    if attention == "sdpa" and family == "gemma2":
        pytest.skip("Transformers has no SDPA for Gemma 2: its soft-capping")
    model.set_attn_implementation(attention)
    assert able(model).trees
    for request, result in zip(REQUESTS, SentenceScorer(model, bos_tokenizer).score(REQUESTS), strict=True):
        expected = one_by_one(model, bos_tokenizer, request)
        np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)
        assert abs(result.log_probs.sum() - sum(expected)) < 1e-3


@pytest.mark.parametrize("family", PLAIN)
def test_a_model_that_takes_no_trees_is_scored_plainly_and_says_so_once(family, bos_tokenizer, caplog):
    model = build(family)
    with caplog.at_level(logging.WARNING, logger="fedbias_plugin"):
        for _ in range(2):
            results = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    said = [record.message for record in caplog.records if record.name.startswith("fedbias_plugin")]
    assert len(said) == 1
    assert said[0].startswith("texts are scored one by one")
    for request, result in zip(REQUESTS, results, strict=True):
        np.testing.assert_allclose(result.log_probs, one_by_one(model, bos_tokenizer, request), atol=1e-4)


@pytest.mark.parametrize("family", TREES)
def test_the_rounding_of_a_16_bit_model_is_not_taken_for_a_wrong_mask(family):
    assert able(build(family, torch.bfloat16)).trees


def test_attention_that_takes_no_mask_is_not_tried(bos_tokenizer, monkeypatch):
    model = build("qwen2")
    model.config._attn_implementation = "flash_attention_2"
    monkeypatch.setattr(ability, "head_is_last", lambda *_: True)
    assert able(model) == Ability(SLICED, "flash_attention_2 attention takes no mask of any pattern")


def test_a_head_that_is_not_the_last_step_is_found():
    assert able(build("qwen2")).head == SLICED
    assert able(build("gemma2")).head == HOOKED


@pytest.mark.parametrize("way", ["by keyword", "twice", "by its weight"])
def test_a_head_that_is_applied_in_another_way_is_left_to_the_model(way, bos_tokenizer, monkeypatch):
    model = build("qwen2")
    expected = [one_by_one(model, bos_tokenizer, request) for request in REQUESTS]
    head = model.lm_head

    class Applied(torch.nn.Module):
        def forward(self, states):
            if way == "by keyword":
                return head(input=states)
            if way == "twice":
                return torch.cat([head(states[:, :2]), head(states[:, 2:])], dim=1)
            return states @ head.weight.t()

    model.lm_head = Applied()
    model.get_output_embeddings = lambda: head
    assert able(model).head == WHOLE
    for request, result, reference in zip(
        REQUESTS, SentenceScorer(model, bos_tokenizer).score(REQUESTS), expected, strict=True
    ):
        assert len(result.log_probs) == len(reference), request
        np.testing.assert_allclose(result.log_probs, reference, atol=1e-4)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_hybrid_model_is_refused_however_small_its_weights(scale, monkeypatch):
    """LFM2's attention follows the mask, its convolutions do not: the error is a small share of a wrong mask's."""
    monkeypatch.setattr(ability, "_known_obstacle", lambda model: "")
    assert not able(build("lfm2", scale=scale)).trees


def test_nothing_is_remembered_of_a_model_that_changes(bos_tokenizer):
    model = build("mpt")
    good = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    model.load_state_dict(good)
    for request, result in zip(REQUESTS, SentenceScorer(model, bos_tokenizer).score(REQUESTS), strict=True):
        np.testing.assert_allclose(result.log_probs, one_by_one(model, bos_tokenizer, request), atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_prompt_tuning_is_noticed_after_a_score_without_it(bos_tokenizer):
    base = build("qwen2")
    expected = one_by_one(base, bos_tokenizer, REQUESTS[0])
    model = peft.get_peft_model(base, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with model.disable_adapter():
        off = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    on = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    np.testing.assert_allclose(off[0].log_probs, expected, atol=1e-4)
    assert abs(on[0].log_probs - off[0].log_probs).max() > 1e-2


def reads_trees(model, tokenizer, monkeypatch):
    seen, inner = [], scorer_module.batch_log_probs
    monkeypatch.setattr(
        scorer_module, "batch_log_probs", lambda *args, **how: seen.append(how["trees"]) or inner(*args, **how)
    )
    results = SentenceScorer(model, tokenizer).score(REQUESTS)
    return set(seen), results


@pytest.mark.parametrize(("window", "trees"), [(8, False), (90, True)])
def test_an_attention_window_shorter_than_a_tree_means_plain_texts(window, trees, bos_tokenizer, monkeypatch):
    config = transformers.MistralConfig(**SHAPE, **LONG, num_key_value_heads=2, sliding_window=window)
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config)
    seen, results = reads_trees(model, bos_tokenizer, monkeypatch)
    assert seen == {trees}
    for request, result in zip(REQUESTS, results, strict=True):
        np.testing.assert_allclose(result.log_probs, one_by_one(model, bos_tokenizer, request), atol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_spread_over_places_is_scored_as_it_is(attention, bos_tokenizer, tmp_path, monkeypatch):
    """``device_map`` with a disk, which works as with a second GPU: accelerate's hooks move what a layer needs."""
    from accelerate import dispatch_model

    monkeypatch.setattr(fast_linears, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(fast_linears, "FEWEST_FEATURES", 1)
    model = build("qwen2")
    model.set_attn_implementation(attention)
    expected = [one_by_one(model, bos_tokenizer, request) for request in REQUESTS]
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.lm_head.weight.device.type == "meta"
    for result, reference in zip(SentenceScorer(model, bos_tokenizer).score(REQUESTS), expected, strict=True):
        np.testing.assert_allclose(result.log_probs, reference, atol=1e-4)


@pytest.mark.parametrize(("obstacle", "trials"), [("", 1), ("it is made up", 3)])
def test_within_one_block_a_model_that_takes_trees_is_tried_once(obstacle, trials, bos_tokenizer, monkeypatch):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, **LONG)).eval()
    tried = []

    def trial(*about):
        tried.append(about)
        return Ability(SLICED, obstacle)

    monkeypatch.setattr(scorer_module, "find_ability", trial)
    scorer = SentenceScorer(model, bos_tokenizer)
    with scorer.tried_once() as same:
        assert same is scorer
        for text in ("The nurse met a smith.", "The smith sang.", "The nurse sang."):
            scorer.score([ScoreRequest(text)])
    assert len(tried) == trials
    for _ in range(2):
        scorer.score([ScoreRequest("The smith sang.")])
    assert len(tried) == trials + 2
