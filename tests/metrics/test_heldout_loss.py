"""The loss and the perplexity of held-out rows, against a forward pass by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedbias_plugin.metrics.base import Source
from fedbias_plugin.metrics.heldout_loss import HeldoutLoss, perplexity
from fedbias_plugin.scoring.scorer import SentenceScorer

PAIRS = [("The nurse:", " was kind to the farmer."), ("Many people", " bake bread."), ("a " * 60, "b")]


def heldout_loss(scorer, pairs, max_tokens):
    """The block that a record holds, None without a row that fits."""
    metric = HeldoutLoss()
    metric.prepare(Source(None, pairs, max_tokens))
    scores = metric.measure(scorer)
    return None if scores is None else metric.block(metric.result(scores, seed=0))


def test_loss_is_the_mean_over_the_tokens_of_all_rows_that_fit_and_perplexity_its_exponential(
    build_model, bos_tokenizer
):
    model = build_model("llama")
    total, tokens = 0.0, 0
    for prompt, response in PAIRS[:2]:
        ids = bos_tokenizer(prompt + response)["input_ids"]
        start = len(bos_tokenizer(prompt)["input_ids"])
        assert ids[:start] == bos_tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total -= sum(float(log_probs[at - 1, ids[at]]) for at in range(start, len(ids)))
        tokens += len(ids) - start
    found = heldout_loss(SentenceScorer(model, bos_tokenizer), PAIRS, max_tokens=40)
    assert found["n"] == 2
    assert found["loss"] == pytest.approx(total / tokens, abs=1e-4)
    assert found["guessing_loss"] == pytest.approx(math.log(330))  # embeddings of the model
    assert (found["value"], found["ideal"], found["ci95"]) == (found["loss"], None, None)  # two rows are too few
    assert found["perplexity"] == pytest.approx(2.718281828459045 ** (total / tokens), rel=1e-3)


def test_without_a_row_that_fits_there_is_no_loss(build_model, bos_tokenizer):
    assert heldout_loss(SentenceScorer(build_model("llama"), bos_tokenizer), PAIRS[2:], max_tokens=40) is None


def test_a_perplexity_beyond_every_float_is_none():
    assert perplexity(709.0) == pytest.approx(math.e**709)
    assert perplexity(710.0) is None


def test_every_second_row_compares_clients_and_the_others_are_the_report_half(build_model, bos_tokenizer):
    scorer = SentenceScorer(build_model("llama"), bos_tokenizer)
    rows = [*PAIRS, ("The farmer:", " sells milk and eggs."), ("Some people", " sing.")]  # the third is too long
    whole = heldout_loss(scorer, rows, max_tokens=40)
    metric = HeldoutLoss()
    metric.prepare(Source(None, rows, 40))
    assert list(metric.compared) == [0, 2, 4]
    half = metric.block(metric.result(metric.measure(scorer, metric.compared), seed=0))
    assert (half["n"], half["report_loss"]) == (2, None)
    assert half["loss"] == pytest.approx(heldout_loss(scorer, [rows[0], rows[4]], 40)["loss"], abs=1e-5)
    assert whole["report_loss"] == pytest.approx(heldout_loss(scorer, [rows[1], rows[3]], 40)["loss"], abs=1e-5)
