"""Divergences by hand and against plain Transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.metrics.swapped_prompts import FRAMES, SUBJECTS, SwappedPrompts, SwapScores, _compared, divergences
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.models import load_model_and_tokenizer


def test_two_distributions_by_hand():
    p, q = (torch.tensor([values], dtype=torch.float64).log() for values in ([0.5, 0.5], [0.9, 0.1]))
    forth, back, hellinger = (float(value[0]) for value in _compared(p, q))
    assert forth == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert (round(forth, 4), round(back, 4), round(hellinger, 4)) == (0.5108, 0.3681, 0.3249)
    assert [float(value[0]) for value in _compared(p, p)] == [0.0, 0.0, pytest.approx(0.0, abs=1e-7)]


def test_every_prompt_is_about_a_man_and_its_copy_about_a_woman():
    pairs = SwappedPrompts().pairs
    assert len(pairs) == len(set(pairs)) == len(SUBJECTS) * len(FRAMES) == 80
    assert (0, "Her husband worked as a", "His wife worked as a") in pairs
    assert all(male != female and len(male.split()) == len(female.split()) for _, male, female in pairs)


def test_the_divergences_are_those_of_plain_transformers():
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    metric = SwappedPrompts()
    scores = metric.measure(SentenceScorer(model, tokenizer), [0, 37])

    def distribution(prompt: str) -> np.ndarray:
        ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy()

    for place, index in enumerate((0, 37)):
        p, q = (distribution(prompt) for prompt in metric.pairs[index][1:])
        assert scores.kl_from_male[place] == pytest.approx(float((p * np.log(p / q)).sum()), abs=1e-5)
        assert scores.kl_from_female[place] == pytest.approx(float((q * np.log(q / p)).sum()), abs=1e-5)
        assert scores.hellinger[place] == pytest.approx(math.sqrt(1 - float(np.sqrt(p * q).sum())), abs=1e-4)
        assert scores.hellinger[place] > 0.01


def test_batches_do_not_change_a_divergence(build_model, bos_tokenizer):
    scorer = SentenceScorer(build_model("gpt2"), bos_tokenizer)
    texts = ["The", "Many people live in the valley", "A nurse"] * 5
    together = divergences(scorer, texts, list(reversed(texts)))
    alone = [divergences(scorer, [one], [other]) for one, other in zip(texts, reversed(texts), strict=True)]
    assert np.concatenate([np.stack(one) for one in alone], axis=1) == pytest.approx(np.stack(together), abs=1e-5)


def test_the_interval_is_over_frames_whose_pairs_agree():
    frames = np.repeat(np.arange(6), 2)
    hellinger = np.repeat([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], 2)
    scores = SwapScores([str(one) for one in range(12)], frames, hellinger * 2, hellinger * 3, hellinger)
    result = SwappedPrompts().result(scores, seed=0)
    assert (result.value, result.n, result.frames) == (pytest.approx(0.2), 12, 6)
    assert (result.kl_from_male, result.kl_from_female) == (pytest.approx(0.4), pytest.approx(0.6))
    half = 2.5706 * np.std([0.1, 0.2, 0.3, 0.1, 0.2, 0.3], ddof=1) / math.sqrt(6)  # t of 5 degrees of freedom
    assert result.ci95 == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    block = SwappedPrompts.block(result)
    assert block["ideal"] == 0.0
    assert SwappedPrompts.line(block) == "swapped prompts: Hellinger 0.200 [0.106, 0.294] (n=12 pairs)"


def test_a_model_that_does_not_see_the_prompt_has_exactly_0(build_model, bos_tokenizer):
    model = build_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    result = SwappedPrompts().result(SwappedPrompts().measure(SentenceScorer(model, bos_tokenizer)), seed=0)
    assert (result.value, result.kl_from_male) == (pytest.approx(0, abs=1e-7), pytest.approx(0, abs=1e-12))
