"""ROUGE-L by hand, and greedy responses against one forward pass a token."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics import rouge_l as rouge
from fedbias_plugin.metrics.base import Source
from fedbias_plugin.metrics.generation import written_responses
from fedbias_plugin.metrics.rouge_l import RougeL, f1_scores, require_rouge
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.scoring.conftest import FAMILIES, SENTENCES

pytest.importorskip("rouge_score", reason="the rouge-score package is not installed")
PROMPTS = ["The", "Many people live in the valley", "A nurse"]


def rouge_l(model, tokenizer, pairs, max_tokens):
    """The block that a record holds, None without a row that fits."""
    metric = RougeL(rouge_samples=len(pairs))
    metric.prepare(Source(None, pairs, max_tokens))
    scores = metric.measure(SentenceScorer(model, tokenizer))
    return None if scores is None else metric.block(metric.result(scores, seed=0))


def written_slowly(model, prompt, new_tokens, end):
    """The likeliest token after everything so far, again and again."""
    ids = list(prompt)
    for _ in range(new_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_f1_is_that_of_the_longest_common_subsequence_in_percent():
    # the cat on mat: 4 of 6 and 4 of 5 words, F1 = 8/11; "Yes!" is "yes"; nothing in common is 0
    references = ["The cat sat on the mat.", "Yes!", "left"]
    responses = ["the cat lay on mat", "yes", ""]
    assert f1_scores(references, responses) == pytest.approx([100 * 8 / 11, 100, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_rows_with_a_cache_are_written_as_single_ones_without(build_model, bos_tokenizer, family):
    model = build_model(family)
    prompts = [bos_tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert len({len(prompt) for prompt in prompts}) == 3
    slow = [written_slowly(model, prompt, 12, bos_tokenizer.eos_token_id) for prompt in prompts]
    expected = [bos_tokenizer.decode(ids, skip_special_tokens=True) for ids in slow]
    assert len(set(expected)) > 1
    assert written_responses(model, bos_tokenizer, prompts, 12) == expected


@pytest.mark.parametrize("as_list", [True, False])
def test_a_response_ends_where_the_models_own_settings_say_too(build_model, eos_tokenizer, as_list):
    model = build_model("llama")
    ids = written_slowly(model, [5, 6], 8, end=1)
    end = ids[3]
    assert end not in ids[:3]
    model.generation_config.eos_token_id = [end] if as_list else end
    assert written_responses(model, eos_tokenizer, [[5, 6]], 8) == [eos_tokenizer.decode(ids[:4])]
    assert len(ids) == 8


def test_a_response_ends_where_its_prompt_says_too(build_model, eos_tokenizer):
    from fedbias_plugin.tasks.encoding import Rendered

    model = build_model("llama")
    for prompt in map(Rendered, SENTENCES):
        ids = written_slowly(model, eos_tokenizer(prompt)["input_ids"], 8, end=1)
        if len(ids) == 8:
            break
    prompt.end = ids[3]
    assert prompt.end not in ids[:3]
    metric = RougeL(rouge_samples=1)
    text = eos_tokenizer.decode(ids[:3])
    metric.prepare(Source(None, [(prompt, text)], 40))
    assert metric.measure(SentenceScorer(model, eos_tokenizer)).f1 == f1_scores([text], [eos_tokenizer.decode(ids[:4])])
    assert len(ids) == 8


def test_sampling_settings_of_the_model_do_not_count_and_are_kept(build_model, bos_tokenizer):
    model = build_model("llama")
    prompts = [bos_tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    plain = written_responses(model, bos_tokenizer, prompts, 10)
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.num_beams = True, 9.0, 5.0, 3
    assert written_responses(model, bos_tokenizer, prompts, 10) == plain
    assert model.generation_config is own
    assert (own.do_sample, own.temperature, own.max_new_tokens) == (True, 9.0, None)


def test_a_model_in_training_is_left_as_it_was(build_model, bos_tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(build_model("gemma2"), LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.train()
    model.config.use_cache = False
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    pairs = [(sentence, "The farmer was kind.") for sentence in SENTENCES[:2]]
    found = rouge_l(model, bos_tokenizer, pairs, 40)
    assert found == rouge_l(model, bos_tokenizer, pairs, 40)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert model.config.use_cache is False
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()  # no tensor of inference mode is left in it
    merged = model.merge_and_unload().eval()
    assert rouge_l(merged, bos_tokenizer, pairs, 40) == found  # the adapter was at work


def test_rows_without_room_for_a_response_are_left_out(build_model, bos_tokenizer):
    model = build_model("llama")  # 96 positions
    prompts = ["a " * 50, "The nurse ", "b " * 70]
    lengths = [len(bos_tokenizer(prompt.rstrip())["input_ids"]) for prompt in prompts]
    assert lengths[0] + 60 > 96 >= lengths[1] + 60
    assert lengths[0] < 60 < lengths[2]
    pairs = [(prompt, "kind") for prompt in prompts]
    found = rouge_l(model, bos_tokenizer, pairs, 60)
    assert (found["n"], found["max_new_tokens"]) == (1, 60)
    assert rouge_l(model, bos_tokenizer, pairs[:1], 60) is None
    assert rouge_l(model, bos_tokenizer, pairs[2:], 60) is None


def test_f1_is_of_the_responses_to_prompts_as_training_cuts_them(build_model, bos_tokenizer):
    model = build_model("llama")
    ids = bos_tokenizer("The nurse:")["input_ids"]
    response = bos_tokenizer.decode(
        written_slowly(model, ids, 30, bos_tokenizer.eos_token_id), skip_special_tokens=True
    )
    reference = f"{response} zzz"
    found = rouge_l(model, bos_tokenizer, [("The nurse: ", reference)], 30)
    assert found["f1"] == pytest.approx(f1_scores([reference], [response])[0])
    assert 50 < found["f1"] < 100


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(rouge.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install rouge-score"):
        require_rouge()
    monkeypatch.undo()
    assert importlib.util.find_spec("rouge_score") is not None
    require_rouge()
