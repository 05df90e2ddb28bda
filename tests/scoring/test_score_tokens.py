"""Texts that somebody else made tokens of, against a plain forward pass of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.processes import Processes
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.scoring.conftest import FAMILIES


def plainly(model, text, start):
    with torch.no_grad():
        log_probs = torch.log_softmax(model.eval()(torch.tensor([text[:-1]])).logits[0].float(), -1)
    own = log_probs[start - 1 :]
    targets = torch.tensor(text[start:])
    return own[range(len(targets)), targets].sum().item(), bool((own.argmax(-1) == targets).all())


def texts_of(model):
    """With a common beginning and without, of several first tokens, one greedy, one as long as the model reads."""
    draws = np.random.default_rng(0)
    prompt = draws.integers(2, 330, 12).tolist()
    with torch.no_grad():
        best = int(model.eval()(torch.tensor([prompt])).logits[0, -1].argmax())
    others = [draws.integers(2, 330, size).tolist() for size in (2, 7, 97)]
    texts = [[*prompt, best], [*prompt, 5, 6, 7], [*prompt, 5, 8], prompt[:2], *others]
    return texts, [12, 12, 12, 1, 1, 3, 60]


@pytest.mark.parametrize("family", FAMILIES)
def test_sums_and_greedy_answers_are_those_of_a_plain_forward_pass(family, build_model, bos_tokenizer):
    model = build_model(family)
    texts, starts = texts_of(model)
    scorer = SentenceScorer(model, bos_tokenizer, max_batch_tokens=64, plans=PlanCache())
    for _ in range(2):  # the second from the kept plan
        sums, likeliest = scorer.score_tokens(texts, starts)
        expected = [plainly(model, text, start) for text, start in zip(texts, starts, strict=True)]
        assert sums.tolist() == pytest.approx([one for one, _ in expected], abs=1e-4)
        assert likeliest.tolist() == [is_greedy for _, is_greedy in expected]
    assert likeliest[0]
    assert not likeliest[1:].all()


def test_two_processes_share_the_batches_and_give_the_sums_of_one(build_model, bos_tokenizer, monkeypatch):
    model = build_model("llama")
    texts, starts = texts_of(model)
    alone = SentenceScorer(model, bos_tokenizer, max_batch_tokens=32).score_tokens(texts, starts)
    parts = []
    monkeypatch.setattr(Processes, "agree", lambda *_, **__: None)
    monkeypatch.setattr(Processes, "total", lambda self, values: parts.append(values) or (sum(parts)))
    for rank in (0, 1):
        scorer = SentenceScorer(model, bos_tokenizer, max_batch_tokens=32, processes=Processes(rank, 2))
        found = scorer.score_tokens(texts, starts)
    assert all(part.any() for part in parts)
    assert [part.tolist() for part in found] == [part.tolist() for part in alone]


def test_what_the_model_cannot_read_is_refused(build_model, bos_tokenizer):
    scorer = SentenceScorer(build_model("llama"), bos_tokenizer)
    with pytest.raises(UserError, match="text 0 has 98 tokens"):
        scorer.score_tokens([[3] * 98], [1], lambda number: f"text {number}")
    with pytest.raises(UserError, match="token 400 is beyond the model's 330 embeddings"):
        scorer.score_tokens([[3, 400]], [1])
    assert [part.tolist() for part in scorer.score_tokens([], [])] == [[], []]


def test_other_tokens_or_another_start_make_another_plan():
    plans = PlanCache()
    one = plans.plan_of_tokens([[1, 2, 3]], [1], 128)
    assert plans.plan_of_tokens([[1, 2, 3]], [1], 128) is one
    for other in (plans.plan_of_tokens([[1, 2, 3]], [2], 128), plans.plan_of_tokens([[1, 2, 4]], [1], 128)):
        assert other is not one
