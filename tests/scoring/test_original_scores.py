"""Kept scores of the original model: equal bits, of that model alone, and no run depends on them."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.original_scores import FOLDER_VARIABLE, OriginalScores, original_scores
from fedbias_plugin.scoring.scorer import SentenceScorer

REQUESTS = [ScoreRequest(f"The nurse is {word}.") for word in ("kind", "rude", "calm")]


@pytest.fixture
def tokenizer(random_model):
    return AutoTokenizer.from_pretrained(random_model)


def model(folder, seed=0, trained=False):
    torch.manual_seed(seed)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    if trained:
        parameters = dict(adapted.named_parameters())
        next(value for name, value in parameters.items() if "lora_B" in name).data[0, 0] = 0.5
    return adapted


def scores(folder, tokenizer, originals=None, **how):
    scorer = SentenceScorer(model(folder, **how), tokenizer, originals=originals)
    return np.concatenate([score.log_probs for score in scorer.score(REQUESTS)])


def test_a_second_run_gets_the_bits_of_the_first_without_asking_its_model(
    random_model, tokenizer, tmp_path, monkeypatch
):
    kept = OriginalScores(tmp_path)
    first = scores(random_model, tokenizer, kept)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    assert np.array_equal(first, scores(random_model, tokenizer))
    monkeypatch.setattr(SentenceScorer, "_log_probs", None)
    assert np.array_equal(first, scores(random_model, tokenizer, kept, seed=1))  # another A, and B is zero


def test_a_trained_adapter_is_neither_looked_up_nor_kept(random_model, tokenizer, tmp_path):
    kept = OriginalScores(tmp_path)
    before = scores(random_model, tokenizer, kept)
    trained = scores(random_model, tokenizer, kept, trained=True)
    assert np.array_equal(trained, scores(random_model, tokenizer, trained=True))
    assert not np.array_equal(trained, before)
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_other_weights_other_items_and_other_settings_are_other_scores(random_model, tokenizer, tmp_path):
    kept, one = OriginalScores(tmp_path), model(random_model)
    scorer = SentenceScorer(one, tokenizer, originals=kept)
    scorer.score(REQUESTS)
    scorer.score(REQUESTS[:2])
    SentenceScorer(one, tokenizer, originals=kept, max_batch_tokens=16).score(REQUESTS)
    one.get_base_model().lm_head.weight.data[-1, -1] += 1
    scorer.score(REQUESTS)
    one.get_base_model().config.rms_norm_eps = 0.5
    scorer.score(REQUESTS)
    assert len(list(tmp_path.glob("*.npz"))) == 5


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file"])
def test_a_damaged_file_is_made_anew(content, random_model, tokenizer, tmp_path):
    kept = OriginalScores(tmp_path)
    first = scores(random_model, tokenizer, kept)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(content)
    assert np.array_equal(first, scores(random_model, tokenizer, kept))
    assert len(path.read_bytes()) > 100


def test_a_file_of_the_wrong_size_is_not_used(random_model, tokenizer, tmp_path):
    kept = OriginalScores(tmp_path)
    first = scores(random_model, tokenizer, kept)
    (path,) = tmp_path.glob("*.npz")
    np.savez(path, log_probs=np.zeros(3))
    assert np.array_equal(first, scores(random_model, tokenizer, kept))


def test_nothing_is_kept_unless_the_environment_names_a_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert original_scores() is None
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert original_scores().folder == tmp_path
