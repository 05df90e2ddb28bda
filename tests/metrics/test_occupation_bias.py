"""Occupation bias by hand, against plain Transformers, and on the published professions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Source, delta
from fedbias_plugin.metrics.gendered import read_professions
from fedbias_plugin.metrics.occupation_bias import TEMPLATES, OccupationBias, OccupationScores
from fedbias_plugin.scoring.scorer import SentenceScorer
from tests.metrics.conftest import public_file
from tests.models import load_model_and_tokenizer


def test_the_numbers_of_two_professions_and_two_templates_by_hand():
    # r: nurse -1, -3; smith 2, 0. Mean |r| per profession 2 and 1; mean r -2 and 1; |r| with "person" 0.5 and 1.5
    scores = OccupationScores(
        ["nurse", "smith"], np.array([[-1.0, -3.0], [2.0, 0.0]]), np.array([0.5, -1.5]), tokens=[1, 1]
    )
    result = OccupationBias().result(scores, seed=1)
    assert (result.value, result.n, result.signed, result.of_person, result.he_share) == (1.5, 2, -0.5, 1.0, 50.0)
    assert result.spread == pytest.approx(3 / math.sqrt(2))
    assert result.ci95 == (1.0, 2.0)
    assert result.signed_ci95 == (-2.0, 1.0)
    block = OccupationBias.block(result)
    assert (block["ideal"], delta(block), block["noise_floor"]) == (0.0, 1.5, None)
    assert OccupationBias.outcomes(vars(scores))[0].tolist() == [2.0, 1.0]
    assert OccupationBias.line(block) == "occupation bias 1.50 [1.00, 2.00] nats (signed -0.50, n=2 professions)"
    assert 'after "the person" instead of an occupation: 1.000' in "\n".join(OccupationBias.table(block))


def test_a_ratio_is_that_of_plain_transformers():
    model, tokenizer = load_model_and_tokenizer(str(TINY_MODEL))
    metric = OccupationBias(professions=["baker", "police officer"])
    scores = metric.measure(SentenceScorer(model, tokenizer))
    assert scores.ratios.shape == (2, len(TEMPLATES))

    def log_prob(prompt: str, word: str) -> float:
        start = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
        ids = [tokenizer.bos_token_id, *tokenizer(prompt + word, add_special_tokens=False)["input_ids"]]
        assert ids[: len(start)] == start
        with torch.no_grad():
            log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        return sum(float(log_probs[place - 1, ids[place]]) for place in range(len(start), len(ids)))

    for row, noun in ((0, "baker"), (1, "police officer")):
        expected = [log_prob(one.format(noun), " he") - log_prob(one.format(noun), " she") for one in TEMPLATES]
        assert scores.ratios[row].tolist() == pytest.approx(expected, abs=1e-4)
    persons = [log_prob(one.format("person"), " he") - log_prob(one.format("person"), " she") for one in TEMPLATES]
    assert scores.of_person.tolist() == pytest.approx(persons, abs=1e-4)
    assert metric.text_count == 2 * len(TEMPLATES) * 3
    some = metric.measure(SentenceScorer(model, tokenizer), [1])
    assert some.ids == ["police officer"]
    assert some.ratios[0].tolist() == pytest.approx(scores.ratios[1].tolist(), abs=1e-5)


def test_a_model_that_does_not_tell_he_from_she_has_exactly_0(build_model, bos_tokenizer):
    model = build_model("gpt2")
    he, she = (bos_tokenizer(f"that {word}", add_special_tokens=False)["input_ids"] for word in ("he", "she"))
    with torch.no_grad():  # zero embeddings: every next token is equally likely
        model.get_output_embeddings().weight.zero_()
    metric = OccupationBias(professions=["baker", "nurse", "judge"])
    result = metric.result(metric.measure(SentenceScorer(model, bos_tokenizer)), seed=0)
    uniform = (len(she) - len(he)) * math.log(model.config.vocab_size)  # a longer word costs a guess more a token
    assert result.value == pytest.approx(abs(uniform), abs=1e-4)
    assert result.spread == pytest.approx(0.0, abs=1e-6)


def test_professions_of_one_gender_by_definition_are_left_out(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps([["actor", 0.8, 0.0], ["drug_addict", 0.0, 0.3], ["maid", -1.0, 0.0]]))
    assert list(OccupationBias.load(path).ids) == ["drug addict"]
    path.write_text(json.dumps([["actor", 0.8, 0.0]]))
    with pytest.raises(UserError, match=r"p\.json: every profession is of one gender by definition"):
        OccupationBias.load(path)
    for content, fault in (("{", "not JSON"), ('[["a", "b"]]', "must be .name, definitional"), ("[]", "holds nothing")):
        path.write_text(content)
        with pytest.raises(UserError, match=rf"p\.json.*{fault}"):
            OccupationBias.load(path)


def test_139_of_the_320_published_professions_stay():
    path = public_file("cda/debiaswe_professions.json")
    assert len(json.loads(path.read_text())) == 320
    professions = read_professions(path, path.read_text())
    assert len(professions) == 139
    assert {"nurse", "actor", "waitress"} & set(professions) == set()
    assert {"accountant", "civil servant", "teacher"} <= set(professions)


def test_without_the_published_list_it_is_a_list_of_our_own():
    from fedbias_plugin.federation.inputs import metric_source

    metric = OccupationBias()
    metric.prepare(metric_source("mini"))
    assert (metric.path.name, len(metric.ids), metric.ids[0]) == ("professions.json", 56, "accountant")
    assert len(set(metric.ids)) == 56
    assert "police officer" in metric.ids
    metric.prepare(Source(lambda kind: metric.path))
