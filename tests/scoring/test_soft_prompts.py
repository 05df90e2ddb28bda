"""A soft prompt is read before every text, once for all that share a tree; all is as peft's forward says."""

import numpy as np
import peft
import pytest
import torch

from fedbias_plugin.metrics.generation import written_responses
from fedbias_plugin.metrics.gradient_norms import gradient_norms
from fedbias_plugin.metrics.swapped_prompts import divergences
from fedbias_plugin.scoring import scorer as scorer_module
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.scorer import SentenceScorer
from fedbias_plugin.scoring.soft_prompts import soft_prompt, virtual_tokens

BEGINNING = "The chess player and the old farmer"
REQUESTS = [
    *(ScoreRequest(f"{BEGINNING} {end}.") for end in ("met", "met a nurse", "were rude to the smith")),
    ScoreRequest(" It rained.", context=f"{BEGINNING} met a nurse."),
    ScoreRequest("Rain."),
]
VIRTUAL = 5


@pytest.fixture
def prompted(build_model):
    """``prompted(family)``: a model behind a soft prompt that matters."""

    def build(family):
        torch.manual_seed(1)
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
        return peft.get_peft_model(build_model(family), config).eval()

    return build


def alone(model, ids):
    """Log-probabilities (tokens, vocabulary) of what follows every token, by peft's forward on one text."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
    assert len(logits) == VIRTUAL + len(ids)
    return torch.log_softmax(logits[VIRTUAL:].float(), -1)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_scores_in_trees_behind_a_soft_prompt_are_those_of_peft_on_each_text_alone(
    family, prompted, bos_tokenizer, monkeypatch
):
    model, trees, inner = prompted(family), set(), scorer_module.batch_log_probs
    monkeypatch.setattr(scorer_module, "batch_log_probs", lambda *a, **how: trees.add(how["trees"]) or inner(*a, **how))
    found = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    for request, one in zip(REQUESTS, found, strict=True):
        ids = [0, *bos_tokenizer.encode(request.context + request.text, add_special_tokens=False)]
        after = alone(model, ids)
        expected = [after[place - 1, ids[place]].item() for place in range(1, len(ids))][-len(one.log_probs) :]
        np.testing.assert_allclose(one.log_probs, expected, atol=1e-4)
    assert trees == {family in ("gpt2", "llama")}  # the others' window of 8 tokens is shorter than a tree
    with model.disable_adapter():
        assert (soft_prompt(model), virtual_tokens(model)) == (None, 0)
        without = SentenceScorer(model, bos_tokenizer).score(REQUESTS[:1])
    assert abs(without[0].log_probs - found[0].log_probs).max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
def test_what_a_model_writes_behind_a_soft_prompt_is_token_by_token_what_peft_s_forward_says(
    family, prompted, bos_tokenizer
):
    model, prompts = prompted(family), [bos_tokenizer.encode(text) for text in ("The old farmer met", "Rain")]
    written = written_responses(model, bos_tokenizer, prompts, 6)  # of two lengths in one batch
    for prompt, text in zip(prompts, written, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6 and ids[-1] != bos_tokenizer.eos_token_id:
            ids.append(int(alone(model, ids)[-1].argmax()))
        assert text == bos_tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
    assert written != written_responses(model.get_base_model(), bos_tokenizer, prompts, 6)


def test_next_token_distributions_are_taken_behind_the_prompt_and_its_positions_are_gone(prompted, bos_tokenizer):
    model = prompted("llama")
    scorer = SentenceScorer(model, bos_tokenizer)
    assert (scorer.longest, virtual_tokens(model)) == (96 - VIRTUAL, VIRTUAL)
    assert soft_prompt(model).shape == (VIRTUAL, 32)
    texts = ["The old farmer met a", "Rain"]
    p, q = (
        alone(model, [0, *bos_tokenizer.encode(text, add_special_tokens=False)])[-1].double().exp() for text in texts
    )
    expected = (1 - (p * q).sqrt().sum()).sqrt().item()
    assert divergences(scorer, texts[:1], texts[1:])[2][0] == pytest.approx(expected, abs=1e-4)


def test_the_gradient_of_a_text_is_that_of_the_prompt_also_of_one_that_was_loaded(prompted, bos_tokenizer):
    model, text = prompted("gpt2"), "Rain."
    ids = torch.tensor([[0, *bos_tokenizer.encode(text, add_special_tokens=False)]])
    labels = torch.where(ids == ids[0, 0], -100, ids)  # that the prompt is followed by <s> is no part of a text
    model(input_ids=ids, labels=labels).loss.backward()
    expected = model.prompt_encoder["default"].embedding.weight.grad.clone()
    model.zero_grad()
    model.prompt_encoder.requires_grad_(False)
    model.active_peft_config.inference_mode = True
    l1, l2 = gradient_norms(SentenceScorer(model, bos_tokenizer), [text])
    assert [l1[0], l2[0]] == pytest.approx([expected.abs().sum().item(), expected.norm().item()], rel=1e-4)
