"""Scoring a quantised model on the CPU changes nothing about its training."""

import pytest
import torch

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.mark.parametrize("flag", ["load_in_8bit", "load_in_4bit"])
def test_a_quantised_model_trains_after_being_scored_as_if_it_had_not_been(random_model, flag):
    from fedbias_plugin.scoring.scorer import ScoreRequest, SentenceScorer
    from tests.models import add_lora, load_model_and_tokenizer

    def gradients(*, scored):
        model, tokenizer = load_model_and_tokenizer(str(random_model), **{flag: True})
        model = add_lora(model, r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=0)
        if scored:
            SentenceScorer(model, tokenizer).score([ScoreRequest("The nurse is kind.")])
        model.train()
        ids = torch.tensor([tokenizer("The baker is calm and brave.")["input_ids"]])
        model(input_ids=ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    plain, after = gradients(scored=False), gradients(scored=True)
    assert any(float(gradient.abs().max()) > 0 for gradient in plain)
    assert all(torch.equal(one, other) for one, other in zip(plain, after, strict=True))
