"""Perplexity and gradients by gender of the text: by hand, against plain torch, and on WikiText-2's lines."""

from __future__ import annotations

import collections
import math

import numpy as np
import pytest
import torch

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import metric_source
from fedbias_plugin.metrics.gender_perplexity import GenderPerplexity, GroupScores, gender_of
from fedbias_plugin.metrics.gradient_norms import gradient_norms
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.metrics.conftest import public_file
from tests.models import add_lora, load_model_and_tokenizer


def test_wikitext_2_has_541_lines_about_men_and_95_about_women():
    path = public_file("wikitext2/valid.txt")
    counts = collections.Counter(map(gender_of, path.read_text(encoding="utf-8").split("\n")))
    assert (counts["male"], counts["female"]) == (541, 95)
    metric = GenderPerplexity.load(path)
    assert metric.text_count == 636


def test_the_gap_and_what_clipping_keeps_by_hand():
    # women: 12 nats over 6 tokens; men: 10 over 10. L2 norms 0.2, 0.05 against 0.1, 0.4; C = 0.1
    scores = GroupScores(
        ["1", "2", "3", "4"],
        np.array([True, True, False, False]),
        np.array([4.0, 8.0, 3.0, 7.0]),
        np.array([2, 4, 3, 7]),
        np.array([True, True, False, False]),
        np.array([2.0, 1.0, 1.0, 3.0]),
        np.array([0.2, 0.05, 0.1, 0.4]),
    )
    result = GenderPerplexity().result(scores, seed=1)
    block = GenderPerplexity.block(result)
    assert (result.value, result.n, result.n_female, result.ci95) == (1.0, 4, 2, (1.0, 1.0))
    assert (result.perplexity_female, result.perplexity_male) == (pytest.approx(math.exp(2)), pytest.approx(math.e))
    assert (block["l1_female"], block["l1_male"], block["l1_gap"]) == (1.5, 2.0, -0.5)
    assert (block["l2_female"], block["l2_male"]) == (pytest.approx(0.125), pytest.approx(0.25))
    assert (block["clipped_female"], block["clipped_male"], block["clipped_gap"]) == (0.5, 0.5, 0.0)
    assert (block["kept_female"], block["kept_male"]) == (pytest.approx(0.75), pytest.approx(0.625))
    assert block["kept_gap_ci95"][0] <= block["kept_gap"] <= block["kept_gap_ci95"][1]
    assert (block["ideal"], block["gradient_texts"], block["clip"]) == (0.0, 2, 0.1)
    assert "norms" not in block
    said = "log-perplexity, women - men 1.000 [1.000, 1.000] (n=4 texts)"
    assert GenderPerplexity.line(block) == f"{said}; clipping to 0.1 keeps 0.75 / 0.62 of gradients (n=2 of each)"
    assert GenderPerplexity.line({**block, "kept_female": None}) == said


def test_norms_are_those_of_a_plain_backward_pass_and_the_model_is_left_alone():
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    model = add_lora(model, r=2, alpha=4, seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.train()
    texts = ["She lived by the sea.", "He was a baker in the old town."]
    l1, l2 = gradient_norms(SentenceScorer(model, tokenizer), texts)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    model.eval()
    for place, text in enumerate(texts):
        model.zero_grad()
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        model(input_ids=ids, labels=ids).loss.backward()
        found = torch.cat([one.grad.flatten() for one in model.parameters() if one.requires_grad])
        assert l1[place] == pytest.approx(float(found.abs().sum()), rel=1e-4)
        assert l2[place] == pytest.approx(float(found.norm()), rel=1e-4)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # as an adapter that is loaded to be scored
    again = gradient_norms(SentenceScorer(model, tokenizer), texts)
    assert again[1].tolist() == pytest.approx(l2.tolist(), rel=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_perplexity_is_that_of_the_scorer_and_gradients_can_be_left_out():
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    metric = GenderPerplexity(gender_gradient_texts=0)
    metric.prepare(metric_source("mini"))
    assert (metric.text_count, sum(is_female for _, _, is_female in metric.lines)) == (24, 12)
    scores = metric.measure(SentenceScorer(model, tokenizer))
    result = metric.result(scores, seed=0)
    losses = {True: [0.0, 0], False: [0.0, 0]}
    for _, line, is_female in metric.lines:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(line, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            losses[is_female][0] += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        losses[is_female][1] += ids.shape[1] - 1
    expected = {group: total / tokens for group, (total, tokens) in losses.items()}
    assert result.value == pytest.approx(expected[True] - expected[False], abs=1e-4)
    assert result.perplexity_male == pytest.approx(math.exp(expected[False]), rel=1e-3)
    block = GenderPerplexity.block(result)
    assert (block["gradient_texts"], block.get("l2_female")) == (0, None)
    assert len(list(GenderPerplexity.rows(block))) == 1


def test_gradients_are_of_equally_many_texts_of_each_gender():
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    metric = GenderPerplexity(gender_gradient_texts=2)
    metric.prepare(metric_source("mini"))
    scores = metric.measure(SentenceScorer(model, tokenizer))
    assert scores.gradient_is_female.tolist() == [True, True, False, False]
    assert (scores.l2 > 0).all()
    assert (scores.l1 >= scores.l2).all()


def test_a_file_about_one_gender_is_refused(tmp_path):
    path = tmp_path / "valid.txt"
    path.write_text("She lived with her mother in a small house by the sea .\n")
    with pytest.raises(UserError, match=r"valid\.txt: there must be lines about women and lines about men"):
        GenderPerplexity.load(path)


def test_texts_of_one_s_own_say_whom_they_are_about(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text('group,text\nminority,The Torvan baker.\nmajority,"The Keshin, baker."\nminority,A Dannek.\n')
    metric = GenderPerplexity(gender_texts=str(path))
    metric.prepare(metric_source("mini"))
    assert metric.lines == [
        ("1", "The Torvan baker.", True), ("2", "The Keshin, baker.", False), ("3", "A Dannek.", True),
    ]  # fmt: skip
    assert (metric.path, len(metric.sha256)) == (path, 64)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("group,text\nminority,A\nothers,B\n", "row 2: needs a text, and a group that is one of female, minority"),
        ("group,text\nmale,A\nfemale,\n", "row 2: needs a text"),
        ("text\nA\n", "row 1: needs a text, and a group"),
        ("group,text\nmale,A\nmajority,B\n", "both groups need a row"),
    ],
)
def test_texts_of_nobody_or_of_one_group_are_refused(rows, said, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text(rows)
    with pytest.raises(UserError, match=said):
        GenderPerplexity(gender_texts=str(path)).prepare(metric_source("mini"))
