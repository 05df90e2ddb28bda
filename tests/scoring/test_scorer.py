"""The scorer against a slow reference: one sentence at a time, full logits, log_softmax."""

import copy
import random

import numpy as np
import peft
import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring import forward
from fedbias_plugin.scoring import scorer as scorer_module
from fedbias_plugin.scoring.ability import Ability
from fedbias_plugin.scoring.scorer import ScoreRequest, SentenceScorer

FAMILIES = ("llama", "mistral", "phi3", "gemma2", "gpt2")
REQUESTS = [
    ScoreRequest("The chess player was kind."),
    ScoreRequest("Bread."),
    ScoreRequest(" They spoke of the weather, then it rained.", context="A nurse met a smith."),
    ScoreRequest("The bridge fell because the river rose for three days; many people live in the valley."),
    ScoreRequest(" Rude!", context="The old farmer was rude to the chess player, and then to the nurse."),
    ScoreRequest("Überraschung: 5€"),
]


def slow_scores(model, tokenizer, request, prefix_id):
    """docs/metrics.md read aloud."""
    whole = tokenizer.encode(request.context + request.text, add_special_tokens=False)
    context = tokenizer.encode(request.context, add_special_tokens=False) if request.context else []
    ids = [prefix_id, *whole]
    with torch.no_grad():
        log_probs = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), dim=-1)
    return [log_probs[t - 1, ids[t]].item() for t in range(1 + len(context), len(ids))]


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_those_of_one_sentence_at_a_time(family, build_model, bos_tokenizer):
    model = build_model(family)
    results = SentenceScorer(model, bos_tokenizer, max_batch_tokens=100).score(REQUESTS)
    for request, result in zip(REQUESTS, results, strict=True):
        expected = slow_scores(model, bos_tokenizer, request, prefix_id=0)
        assert len(result.token_ids) == len(expected)
        np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)
        assert abs(result.log_probs.sum() - sum(expected)) < 1e-3
        assert result.token_ids.dtype == np.int64
        assert result.log_probs.dtype == np.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_batch_size_and_order_do_not_change_a_score(family, build_model, bos_tokenizer):
    model = build_model(family)
    sums = [result.log_probs.sum() for result in SentenceScorer(model, bos_tokenizer).score(REQUESTS)]
    for batch_tokens in (1, 64, 150):
        order = random.Random(batch_tokens).sample(range(len(REQUESTS)), len(REQUESTS))
        scorer = SentenceScorer(model, bos_tokenizer, max_batch_tokens=batch_tokens)
        shuffled = scorer.score([REQUESTS[index] for index in order])
        np.testing.assert_allclose([result.log_probs.sum() for result in shuffled], [sums[i] for i in order], atol=1e-3)


def test_every_token_of_a_text_is_scored_and_none_of_its_context(build_model, bos_tokenizer):
    result = SentenceScorer(build_model(), bos_tokenizer).score([REQUESTS[2]])[0]
    assert bos_tokenizer.decode(result.token_ids) == REQUESTS[2].text


def test_white_space_at_the_end_of_a_context_belongs_to_the_text(build_model, bos_tokenizer):
    scorer = SentenceScorer(build_model(), bos_tokenizer)
    first, second = scorer.score([ScoreRequest("Bread.", context="It rained. "), ScoreRequest(" Bread.", "It rained.")])
    np.testing.assert_array_equal(first.token_ids, second.token_ids)
    np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-4)


class Spy(torch.nn.Module):
    """Records the token ids that reach a model."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config, self.seen = model, model.config, []
        self.get_input_embeddings = model.get_input_embeddings
        self.get_output_embeddings = model.get_output_embeddings

    def forward(self, **inputs):
        self.seen.append(inputs)
        return self.model(**inputs)


def test_the_prefix_token_stands_before_a_text_once(build_model, bos_tokenizer, eos_tokenizer):
    for tokenizer, prefix in ((bos_tokenizer, "<s>"), (eos_tokenizer, "</s>")):
        spy = Spy(build_model())
        scorer = SentenceScorer(spy, tokenizer)
        scorer.score([ScoreRequest("Many people live in the valley.")])
        ids = spy.seen[-1]["input_ids"][0].tolist()
        assert scorer.prefix_token == prefix
        # The last token is predicted and never read.
        assert tokenizer.decode(ids).replace(" ", "") == f"{prefix}Manypeopleliveinthevalley"
        assert ids.count(scorer.prefix_id) == 1


def test_a_tokenizer_without_bos_and_eos_is_refused(build_model, eos_tokenizer):
    tokenizer = copy.deepcopy(eos_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a BOS nor an EOS"):
        SentenceScorer(build_model(), tokenizer)


@pytest.fixture
def without_trial(monkeypatch):
    """Only the calls of the scoring itself are counted."""
    monkeypatch.setattr(scorer_module, "find_ability", lambda model, *_: Ability(forward.SLICED))


def test_batches_stay_within_the_token_budget_and_count_every_text_once(build_model, bos_tokenizer, without_trial):
    spy, counted = Spy(build_model()), []
    requests = [ScoreRequest(f"{word} {request.text}") for request in REQUESTS for word in ("One", "Two", "Three")]
    SentenceScorer(spy, bos_tokenizer, max_batch_tokens=130, progress=counted.append).score(requests)
    assert all(call["input_ids"].numel() <= 130 for call in spy.seen)
    assert sum(counted) == len(requests)
    assert len(counted) > 1


def test_no_token_is_read_twice_and_padding_is_small(build_model, bos_tokenizer, without_trial):
    spy = Spy(build_model())
    beginning = "The chess player and the old farmer walked along the river and"
    requests = [ScoreRequest(f"{beginning} {word}.") for word in ("sang", "met a smith", "met a nurse", "ate bread")]
    SentenceScorer(spy, bos_tokenizer).score(requests)
    whole = [[0, *bos_tokenizer.encode(request.text, add_special_tokens=False)] for request in requests]
    prefixes = {tuple(ids[:end]) for ids in whole for end in range(1, len(ids))}
    assert [call["input_ids"].numel() for call in spy.seen] == [len(prefixes)]
    assert len(prefixes) < sum(map(len, whole)) / 2


def rows_of_the_head(model, tokenizer):
    rows = []
    handle = model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[-2]))
    results = SentenceScorer(model, tokenizer).score(REQUESTS)
    handle.remove()
    return rows, results


def test_the_head_is_evaluated_only_where_a_token_is_predicted(build_model, bos_tokenizer, without_trial):
    model = build_model()
    rows, results = rows_of_the_head(model, bos_tokenizer)
    # One row more for the end of the model's own forward pass.
    assert sum(rows) <= 1 + sum(len(result.token_ids) for result in results)


def test_the_softmax_in_slices_changes_nothing(build_model, bos_tokenizer, without_trial, monkeypatch):
    model = build_model()
    _, whole = rows_of_the_head(model, bos_tokenizer)
    monkeypatch.setitem(forward.SLICE_LOGITS, "cpu", 3 * model.config.vocab_size)
    rows, sliced = rows_of_the_head(model, bos_tokenizer)
    assert max(rows) == 3
    for first, second in zip(whole, sliced, strict=True):
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-5)


def test_a_head_that_cannot_be_sliced_limits_the_batch(build_model, bos_tokenizer, monkeypatch):
    model = build_model("gemma2")  # soft-caps its logits
    monkeypatch.setattr(scorer_module, "find_ability", lambda model, *_: Ability(forward.HOOKED))
    _, whole = rows_of_the_head(model, bos_tokenizer)
    longest = max(len(result.token_ids) for result in whole)
    monkeypatch.setattr(scorer_module, "TREE_TOKENS", longest)
    monkeypatch.setattr(scorer_module, "MAX_LOGITS", longest * model.config.vocab_size)
    rows, parts = rows_of_the_head(model, bos_tokenizer)
    assert max(rows) <= longest
    for first, second in zip(whole, parts, strict=True):
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-4)


def test_a_model_without_a_head_module_is_scored_from_its_whole_logits(build_model, bos_tokenizer):
    model = build_model("llama")
    spy = Spy(model)
    spy.get_output_embeddings = lambda: None
    expected = [slow_scores(model, bos_tokenizer, request, prefix_id=0) for request in REQUESTS]
    for result, reference in zip(SentenceScorer(spy, bos_tokenizer).score(REQUESTS), expected, strict=True):
        np.testing.assert_allclose(result.log_probs, reference, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_16_bit_model_gets_a_float32_log_softmax(family, build_model, bos_tokenizer):
    model = build_model(family, torch.bfloat16)
    request = REQUESTS[3]
    result = SentenceScorer(model, bos_tokenizer).score([request])[0]
    np.testing.assert_allclose(result.log_probs, slow_scores(model, bos_tokenizer, request, 0), atol=1e-3)


def lora(model):
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return adapted


def test_a_lora_adapter_counts_and_its_dropout_does_not(build_model, bos_tokenizer):
    plain = SentenceScorer(build_model(), bos_tokenizer).score(REQUESTS)
    adapted = lora(build_model()).train()
    results = SentenceScorer(adapted, bos_tokenizer).score(REQUESTS)
    assert abs(results[0].log_probs - plain[0].log_probs).max() > 1e-2
    adapted.eval()
    for request, result in zip(REQUESTS, results, strict=True):
        np.testing.assert_allclose(result.log_probs, slow_scores(adapted, bos_tokenizer, request, 0), atol=1e-4)
    with adapted.disable_adapter():
        disabled = SentenceScorer(adapted, bos_tokenizer).score(REQUESTS)
    np.testing.assert_allclose(disabled[0].log_probs, plain[0].log_probs, atol=1e-5)


def test_virtual_tokens_of_a_prompt_tuned_model_are_not_scored(build_model, bos_tokenizer):
    model = peft.get_peft_model(build_model(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    result = SentenceScorer(model, bos_tokenizer).score([REQUESTS[0]])[0]
    ids = [0, *bos_tokenizer.encode(REQUESTS[0].text, add_special_tokens=False)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
    expected = [torch.log_softmax(logits[3 + t - 1], -1)[ids[t]].item() for t in range(1, len(ids))]
    np.testing.assert_allclose(result.log_probs, expected, atol=1e-4)


def test_the_model_is_left_as_it_was(build_model, bos_tokenizer):
    model = lora(build_model()).train()
    model.base_model.model.model.layers[1].eval()
    model.config.use_cache = True
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert model.config.use_cache is True
    assert model.active_adapters == ["default"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_after_an_error(build_model, bos_tokenizer):
    model = build_model().train()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"pair 7.*not finite"):
        SentenceScorer(model, bos_tokenizer).score(REQUESTS[:1], lambda index: f"pair {index + 7}")
    assert all(module.training for module in model.modules())
    assert not model.lm_head._forward_pre_hooks


def test_the_global_random_state_is_untouched(build_model, bos_tokenizer):
    model = build_model()
    model.model.norm.register_forward_hook(lambda module, inputs, output: output + 0 * torch.rand(1))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_trains_after_being_scored_as_if_it_had_not_been(family, checkpointing, build_model, bos_tokenizer):
    def gradients(scored):
        model = build_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
        if scored:
            SentenceScorer(model, bos_tokenizer).score(REQUESTS)
        ids = torch.tensor([bos_tokenizer.encode(REQUESTS[3].text)])
        torch.manual_seed(3)
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    fresh, after = gradients(False), gradients(True)
    assert fresh.keys() == after.keys()
    assert all(torch.equal(fresh[name], after[name]) for name in fresh)


class Caching(torch.nn.Module):
    """A linear layer that keeps a table made in its first forward pass, as some rotary embeddings do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.table = inner, None
        self.register_buffer("scale", None, persistent=False)

    def forward(self, states):
        if self.table is None:
            self.table = torch.ones(states.shape[-1])
            self.scale = torch.ones(states.shape[-1])
        return self.inner(states * self.table * self.scale)


def test_tables_that_a_module_keeps_from_scoring_can_be_trained_with(build_model, bos_tokenizer):
    model = build_model()
    model.model.layers[0].mlp = Caching(model.model.layers[0].mlp)
    SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    ids = torch.tensor([bos_tokenizer.encode(REQUESTS[0].text)])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.embed_tokens.weight.grad.abs().sum() > 0


def test_the_callers_autocast_changes_neither_scores_nor_training(build_model, bos_tokenizer):
    model = build_model()
    expected = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
    ids = torch.tensor([bos_tokenizer.encode(REQUESTS[0].text)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = SentenceScorer(model, bos_tokenizer).score(REQUESTS)
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    np.testing.assert_array_equal(results[3].log_probs, expected[3].log_probs)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_an_error_that_names_the_item(text, build_model, bos_tokenizer):
    with pytest.raises(UserError, match="item 1: there is no text"):
        SentenceScorer(build_model(), bos_tokenizer).score([REQUESTS[0], ScoreRequest(text, "It rained.")])


def test_a_text_longer_than_the_model_is_an_error_with_both_lengths(build_model, bos_tokenizer):
    text = "rain " * 100
    length = 1 + len(bos_tokenizer.encode(text, add_special_tokens=False))
    with pytest.raises(UserError, match=rf"row 4 has {length} tokens .* 96 positions"):
        SentenceScorer(build_model("gpt2"), bos_tokenizer).score([ScoreRequest(text)], lambda index: "row 4")


def test_a_tokenizer_of_another_model_is_an_error(build_model, bos_tokenizer):
    model = build_model()
    model.resize_token_embeddings(260)
    with pytest.raises(UserError, match="beyond the model's 260 embeddings"):
        SentenceScorer(model, bos_tokenizer).score(REQUESTS)


def test_nothing_to_score_gives_nothing(build_model, bos_tokenizer):
    assert SentenceScorer(build_model(), bos_tokenizer).score([]) == []


def test_a_batch_of_no_tokens_is_refused(build_model, bos_tokenizer):
    with pytest.raises(UserError, match="at least 1 token"):
        SentenceScorer(build_model(), bos_tokenizer, max_batch_tokens=0)


@pytest.mark.parametrize("bits", ["load_in_8bit", "load_in_4bit"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_quantised_model_is_scored_as_it_is(bits, tmp_path, build_model, bos_tokenizer):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    build_model().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**{bits: True})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    device = model.get_input_embeddings().weight.device
    result = SentenceScorer(model, bos_tokenizer).score([REQUESTS[0]])[0]
    ids = torch.tensor([[0, *result.token_ids]], device=device)
    model.train(bits == "load_in_4bit")  # on the CPU an eval-mode pass would repack the 4-bit weights; no dropout here
    with torch.no_grad():
        log_probs = torch.log_softmax(model(ids).logits[0].float(), dim=-1).cpu()
    expected = [log_probs[t - 1, ids[0, t]].item() for t in range(1, ids.shape[1])]
    np.testing.assert_allclose(result.log_probs, expected, atol=1e-3)


def test_a_model_that_turns_autocast_on_by_itself_can_be_trained_with_afterwards(build_model, bos_tokenizer):
    """As accelerate's mixed precision does; the outer context keeps autocast's cache alive."""
    model = build_model()
    plain_forward = model.forward

    def forward(*args, **kwargs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return plain_forward(*args, **kwargs)

    model.forward = forward
    ids = torch.tensor([bos_tokenizer.encode(REQUESTS[0].text)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SentenceScorer(model, bos_tokenizer).score(REQUESTS)
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
