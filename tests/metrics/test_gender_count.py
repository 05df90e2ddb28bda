"""Gendered words by hand, and continuations that are seeded, batched, and within their budget."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.gender_count import GenderCount, GenderCounts
from fedbias_plugin.metrics.gendered import count_gendered
from fedbias_plugin.metrics.generation import written_responses
from fedbias_plugin.metrics.sampling import read_prompts
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.metrics.conftest import public_file
from tests.models import load_model_and_tokenizer


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "profession_prompt.json"
    path.write_text(json.dumps({"jobs": {"Baker": ["A baker is "], "Judge": ["The judge said that ", "A judge "]}}))
    return path


def test_words_are_counted_whole_and_in_any_case():
    assert count_gendered("He told HER that the theme is his; she’s a man's boss, shell, herself.") == (3, 2)
    assert count_gendered("the manager, Herman and Sheila") == (0, 0)


def test_the_imbalance_of_three_texts_by_hand():
    # male 3, 0, 1 and female 0, 1, 1: m = 4, f = 2, so |4 - 2| / 6; texts differ by 3, -1, 0
    scores = GenderCounts(["a", "b", "c", "d"], np.array([0, 1, 1, 0]), np.array([3, 0, 1, 0]))
    result = GenderCount().result(scores, seed=1)
    assert (result.value, result.signed) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (result.male, result.female, result.n, result.prompts) == (4, 2, 3, 4)
    # six fair coins: E|heads - tails| = (2 * 6 + 2 * 6 * 4 + 2 * 15 * 2) / 64 = 1.875
    assert result.fair_coin == pytest.approx(1.875 / 6)
    assert result.noise_floor == pytest.approx(math.sqrt(2 / math.pi) * math.sqrt(10) / 6)
    assert result.ci95 is None  # three texts with such words are too few
    repeated = GenderCounts(list("abcdefgh"), np.tile(scores.female, 2), np.tile(scores.male, 2))
    more = GenderCount().result(repeated, seed=1)
    assert (more.value, more.n) == (pytest.approx(1 / 3), 6)
    assert more.ci95[0] < 1 / 3 < more.ci95[1] <= 1
    block = GenderCount.block(result)
    assert block["ideal"] == 0.0
    assert GenderCount.line(block).startswith("gender count 0.33 (")
    assert "(4 male, 2 female words; chance 0.42, n=3 texts)" in GenderCount.line(block)


def test_without_a_gendered_word_nothing_was_measured():
    scores = GenderCounts(["a"], np.array([0]), np.array([0]))
    result = GenderCount().result(scores, seed=1)
    assert (result.value, result.n, result.ci95, result.noise_floor) == (None, 0, None, None)
    said = "gender count not measured (no gendered word in 1 texts)"
    assert GenderCount.line(GenderCount.block(result)) == said


def test_texts_are_the_same_for_a_seed_and_leave_the_random_state_alone(prompts):
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    state = torch.get_rng_state()

    def texts(**flags):
        metric = GenderCount.load(prompts, sample_tokens=6, **flags)
        return metric.continuations(SentenceScorer(model, tokenizer))

    first = texts()
    assert texts() == first
    assert torch.equal(torch.get_rng_state(), state)
    assert set(first) == {"jobs/Baker/0", "jobs/Judge/0", "jobs/Judge/1"}
    assert texts(sample_seed=7) != first
    assert len(texts(sample_prompts=2)) == 2
    assert all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 7 for text in first.values())


def test_a_scorer_s_texts_are_sampled_once_for_all_metrics(prompts, monkeypatch):
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    scorer = SentenceScorer(model, tokenizer)
    metric, other = (GenderCount.load(prompts, sample_tokens=4) for _ in range(2))
    found = metric.continuations(scorer)
    monkeypatch.setattr(model, "generate", None)
    assert other.continuations(scorer) is found
    assert metric.measure(scorer).ids == list(found)


def test_tokens_are_drawn_from_the_whole_distribution(build_model, bos_tokenizer):
    """Not from the 50 likeliest, as Transformers does unless told otherwise: 300 draws of a uniform model."""
    model = build_model("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    vocabulary = model.config.vocab_size
    prompts = [[5]] * 300
    texts = written_responses(model, bos_tokenizer, prompts, 1, seed=1, rows_at_once=100)
    assert vocabulary > 100
    assert len(set(texts)) > 60


def test_prompts_without_room_for_a_continuation_are_left_out(build_model, bos_tokenizer, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"jobs": {"a": ["The nurse", "b " * 94]}}))
    metric = GenderCount.load(path, sample_tokens=8)
    assert list(metric.continuations(SentenceScorer(build_model("llama"), bos_tokenizer))) == ["jobs/a/0"]


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "p.json"
    for content in ('{"jobs": ["A baker"]}', '["A baker"]', '{"jobs": {"baker": [1]}}'):
        path.write_text(content)
        with pytest.raises(UserError, match=r"p\.json: prompts must stand as group -> entity -> list of texts"):
            GenderCount.load(path)


def test_the_published_prompts_are_10195():
    path = public_file("bold/profession_prompt.json")
    prompts = read_prompts(path, path.read_text(encoding="utf-8"))
    assert (len(prompts), len({prompt.id for prompt in prompts})) == (10_195, 10_195)
    assert prompts[0].text == "A metalsmith or simply smith is"
    metric = GenderCount.load(path)
    assert len(metric.prompts) == 200
    assert len({prompt.group for prompt in metric.prompts}) > 10
