"""Judges of texts: folders with known answers, VADER's own examples, and gaps by hand."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import metric_source
from fedbias_plugin.measuring import measure
from fedbias_plugin.metrics import text_classifiers
from fedbias_plugin.metrics.text_classifiers import Classifier, load_classifier
from fedbias_plugin.metrics.text_scores import Regard, Sentiment, TextScores, Toxicity
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.metrics.conftest import public_file
from tests.models import load_model_and_tokenizer, save_classifier


@pytest.fixture
def folder(tmp_path):
    """Saves a sequence classifier with these labels."""
    return functools.partial(save_classifier, tmp_path / "judge")


def chances(folder, text, sigmoid=False):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits[0]
    return (logits.sigmoid() if sigmoid else logits.softmax(-1)).tolist()


TEXTS = ["The baker is kind.", "rude", "A pilot was here and there, and everywhere."]


def test_a_score_is_that_of_plain_transformers_for_every_kind_of_labels(folder):
    place = folder(["Negative", "Neutral", "Positive"])
    found = load_classifier("regard_classifier", str(place), ("positive",), ("negative",))
    expected = [(1 + chances(place, text)[2] - chances(place, text)[0]) / 2 for text in TEXTS]
    assert found.score(TEXTS).tolist() == pytest.approx(expected, abs=1e-5)
    assert (found.name, len(found.sha256)) == ("judge", 64)
    place = folder(["LABEL_0", "LABEL_1"])
    other = load_classifier("toxicity_classifier", str(place), ("toxic",))
    assert other.score(TEXTS).tolist() == pytest.approx([chances(place, text)[1] for text in TEXTS], abs=1e-5)
    assert other.sha256 != found.sha256
    place = folder(["toxic", "insult", "toxicity"], problem_type="multi_label_classification")
    multi = load_classifier("toxicity_classifier", str(place), ("toxic", "toxicity"))
    own = [chances(place, text, sigmoid=True) for text in TEXTS]
    assert multi.score(TEXTS).tolist() == pytest.approx([max(one[0], one[2]) for one in own], abs=1e-5)
    assert multi.score([]).tolist() == []


def test_what_is_no_classifier_is_refused_by_name(folder, tmp_path):
    with pytest.raises(UserError, match=r"--toxicity_classifier .*gone must be a folder with a Transformers sequence"):
        Toxicity(toxicity_classifier=str(tmp_path / "gone")).check_flags({})
    with pytest.raises(UserError, match=r"--regard_classifier vader: VADER judges sentiment alone"):
        Regard(regard_classifier="vader").check_flags({})
    place = folder(["joy", "anger"])
    with pytest.raises(UserError, match=r"none of its labels \(joy, anger\) is one of toxic, toxicity"):
        Toxicity(toxicity_classifier=str(place)).prepare(metric_source("mini"))
    (place / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"--toxicity_classifier .*judge cannot be loaded as a sequence classifier"):
        Toxicity(toxicity_classifier=str(place)).prepare(metric_source("mini"))


def test_vader_s_own_published_examples_come_out():
    """``compound`` as its README prints it."""
    pytest.importorskip("vaderSentiment", reason="vaderSentiment is not installed")
    texts = ["VADER is smart, handsome, and funny.", "VADER is not smart, handsome, nor funny.", "The book was good."]
    found = load_classifier("sentiment_classifier", "vader", ("positive",))
    assert found.score([*texts, "Today SUX!"]) == pytest.approx(
        [(1 + c) / 2 for c in (0.8316, -0.7424, 0.4404, -0.5461)]
    )
    assert found.name == "vader 3.3.2"
    assert len(found.sha256) == 64


def test_vader_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(text_classifiers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--sentiment_classifier vader needs vaderSentiment.*pip install"):
        Sentiment(sentiment_classifier="vader").check_flags({})


def test_the_gap_of_two_groups_by_hand():
    metric = Sentiment(sample_tokens=5)
    metric.classifier = Classifier("judge", "0" * 64, None)
    scores = TextScores(["a", "b", "c", "d"], np.array([True, True, False, False]), np.array([0.2, 0.4, 0.5, 0.9]))
    result = metric.result(scores, seed=1)
    assert (result.value, result.female, result.male) == (pytest.approx(-0.4), pytest.approx(0.3), pytest.approx(0.7))
    assert result.ci95 == (pytest.approx(-0.7), pytest.approx(-0.1))
    # standard errors 0.1 and 0.2
    assert result.noise_floor == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(0.01 + 0.04))
    block = Sentiment.block(result)
    assert (block["ideal"], block["classifier"], block["n_female"], block["new_tokens"]) == (0.0, "judge", 2, 5)
    assert Sentiment.line(block) == "sentiment gap, women - men -0.400 [-0.700, -0.100] (0.300 - 0.700, n=4 texts)"


def test_without_a_classifier_it_is_not_measured_and_never_0(caplog):
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    found = measure(model, tokenizer, benchmarks="toxicity", data_dir="mini")
    assert (found["toxicity"].value, found["toxicity"].n) == (None, 0)
    assert found.table() == repr(found) == "toxicity gap             not measured"
    assert json.dumps(found.to_json())
    assert "toxicity is not measured: --toxicity_classifier names no classifier." in caplog.text


def test_the_continuations_alone_are_judged_half_of_them_of_each_gender(folder):
    place = folder(["neg", "pos"])
    metric = Sentiment(sentiment_classifier=str(place), sample_prompts=7, sample_tokens=4)
    metric.prepare(metric_source("mini"))
    assert [one.group for one in metric.prompts] == ["female"] * 3 + ["male"] * 3
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    scorer = SentenceScorer(model, tokenizer)
    scores = metric.measure(scorer)
    assert scores.is_female.tolist() == [True] * 3 + [False] * 3
    texts = list(metric.continuations(scorer).values())
    assert scores.scores.tolist() == pytest.approx(metric.classifier.score(texts).tolist())
    assert not any(prompt.text in text for prompt, text in zip(metric.prompts, texts, strict=True))


def test_the_published_prompts_are_of_actresses_and_actors(folder):
    metric = Toxicity(toxicity_classifier=str(folder(["fine", "toxic"])), sample_prompts=400)
    path = public_file("bold/gender_prompt.json")
    metric.prepare(metric_source(str(path.parents[1])))
    assert [one.group for one in metric.prompts] == ["American_actresses"] * 200 + ["American_actors"] * 200
