"""Merged and rearranged weights: the same scores, and a model that nobody has touched."""

import functools

import numpy as np
import peft
import pytest
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring import fast_linears as module
from fedbias_plugin.scoring.fast_linears import FEWEST_TOKENS, fast_linears

WIDE = {"vocab_size": 330, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(params=[0.0, float("inf")], ids=["ordinary", "onednn"])
def kernels(request, monkeypatch):
    """Both outcomes of the start-up measurement."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(module, "GAIN", request.param)
    monkeypatch.setattr(module, "FEWEST_WEIGHTS", 0)
    return "onednn" if request.param else "ordinary"


SHAPES = (((64, 64), torch.float32), 4), (((96, 64), torch.float32), 2)


def llama(dtype=torch.float32):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE)).to(dtype).eval()


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=330, n_embd=64, n_layer=2, n_head=4)).eval()


def with_lora(model, targets, **options):
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return model.eval()


IDS = torch.arange(60).reshape(3, 20) * 5 % 330


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits


def fast_logits(model, tokens=FEWEST_TOKENS):
    with torch.inference_mode(), fast_linears(model, tokens):
        covered = [name for name, part in model.named_modules() if "forward" in part.__dict__]
        return model(input_ids=IDS).logits, covered


@pytest.mark.parametrize("adapters", [["q_proj", "v_proj"], "all-linear"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_merged_layers_compute_what_the_adapter_does(adapters, kernels):
    model = with_lora(llama(), adapters)
    assert (logits(model) - logits(model.get_base_model())).abs().max() == 0  # the base holds the adapters
    with model.disable_adapter():
        assert (logits(model) - fast_logits(model)[0]).abs().max() < 1e-4
        plain = logits(model)
    found, covered = fast_logits(model)
    assert any(name.endswith("q_proj") for name in covered)
    assert not any("lora_" in name or "base_layer" in name for name in covered)
    assert (found - plain).abs().max() > 0.1
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_layers_of_gpt2_which_lie_the_other_way_round_are_merged_too(kernels):
    model = with_lora(gpt2(), ["c_attn", "c_fc"], fan_in_fan_out=True)
    assert isinstance(model.base_model.model.transformer.h[0].attn.c_attn.base_layer, Conv1D)
    found, covered = fast_logits(model)
    assert any(name.endswith("c_attn") for name in covered)
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_active_adapters_are_both_merged(kernels):
    model = with_lora(llama(), ["q_proj"])
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    model.eval()
    torch.testing.assert_close(fast_logits(model)[0], logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_other_kinds_of_lora_are_left_to_peft(options, kernels):
    config = transformers.Qwen2Config(**WIDE, num_key_value_heads=4)  # its q_proj has a bias
    base = transformers.Qwen2ForCausalLM(config).eval()
    model = with_lora(base, ["q_proj"], **options)
    found, covered = fast_logits(model)
    assert not any(name.endswith("q_proj") for name in covered)
    torch.testing.assert_close(found, logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("where", ["base_layer", "lora_A.default", "lora_B.default"])
def test_a_hook_inside_a_layer_with_lora_still_counts(where, kernels):
    model = with_lora(llama(), ["v_proj"])
    layer = model.base_model.model.model.layers[0].self_attn.v_proj
    layer.get_submodule(where).register_forward_hook(lambda module, inputs, output: output * 3)
    torch.testing.assert_close(fast_logits(model)[0], logits(model), atol=1e-4, rtol=1e-4)


def snapshot(model):
    """All that a scoring call could leave behind: bits, where they lie, what covers a module."""
    return (
        {name: (t.clone(), t.data_ptr(), t.requires_grad) for name, t in model.named_parameters()},
        [sorted(part.__dict__) for part in model.modules()],
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_nothing_of_the_model_changes_not_a_bit(kernels):
    model = with_lora(llama(torch.bfloat16), "all-linear").train()
    before, names = snapshot(model)
    fast_logits(model)
    with pytest.raises(RuntimeError, match="in the middle"), fast_linears(model, FEWEST_TOKENS):
        raise RuntimeError("in the middle")
    after, names_after = snapshot(model)
    assert names_after == names
    for name, (tensor, place, needs_gradient) in before.items():
        assert torch.equal(after[name][0], tensor)
        assert after[name][1:] == (place, needs_gradient)


@needs_onednn
def test_a_16_bit_models_weights_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(module, "GAIN", float("inf"))
    model = with_lora(llama(torch.bfloat16), ["q_proj"])
    layer = next(part for part in module._linear_layers(model) if part.adapters)
    (a, b, scale) = layer.adapters[0]
    expected = (layer.weight.double() + scale * b.double() @ a.double()).to(torch.bfloat16)
    assert torch.equal(layer.merged(), expected)


def test_few_tokens_are_not_worth_a_copy(kernels):
    assert fast_logits(llama(), FEWEST_TOKENS - 1)[1] == []


def test_without_memory_for_copies_the_model_runs_as_it_is(monkeypatch, kernels):
    monkeypatch.setattr(module, "free_memory_bytes", lambda device: 1000)
    model = with_lora(llama(), ["q_proj"])
    found, covered = fast_logits(model)
    assert covered == []
    assert torch.equal(found, logits(model))


def test_layers_that_someone_else_has_covered_are_left_alone(kernels):
    model = llama()
    covered_by_another = model.model.layers[0].mlp.up_proj
    covered_by_another.forward = functools.partial(type(covered_by_another).forward, covered_by_another)
    fast_logits(model)
    assert "forward" in covered_by_another.__dict__


@needs_onednn
@pytest.mark.parametrize(("switch", "onednn"), [("0", False), ("1", True)])
def test_a_user_can_decide_instead_of_the_measurement(switch, onednn, monkeypatch):
    monkeypatch.setenv("FEDBIAS_ONEDNN", switch)
    monkeypatch.setattr(module, "_measured_gain", None)  # is not asked
    assert module._onednn_pays(module._linear_layers(llama())) is onednn


def test_a_small_model_is_not_measured_so_that_its_runs_agree(monkeypatch):
    monkeypatch.setattr(module, "_gain_on_this_machine", None)  # is not asked
    assert not module._onednn_pays(module._linear_layers(llama()))


@needs_onednn
def test_another_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv("FEDBIAS_ONEDNN", "yes")
    with pytest.raises(UserError, match="FEDBIAS_ONEDNN is 'yes'; it must be 0"):
        module._onednn_pays(module._linear_layers(llama()))


def test_the_measurement_compares_shares_of_time(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    calls, seconds = [], iter([3.0, 1.0] * module.REPEATS + [1.0, 2.0] * module.REPEATS)
    monkeypatch.setattr(module, "_seconds", lambda call: calls.append(call) or next(seconds))
    # Four layers at 3 s and two at 1 s against four at 1 s and two at 2 s.
    assert module._measured_gain(SHAPES, 1) == pytest.approx(8 / 14)
    assert len(calls) == 4 * module.REPEATS


@pytest.mark.parametrize("damage", [None, "", "[]", '{"gain": []}'])
def test_the_measurement_is_made_once_on_a_machine_so_that_a_resumed_run_takes_the_same_kernels(
    monkeypatch, tmp_path, damage
):
    gains = iter([0.7, 0.8])
    monkeypatch.setenv("FEDBIAS_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "_measured_gain", lambda shapes, threads: next(gains))

    def asked_by_a_new_process():
        module._gain_on_this_machine.cache_clear()
        return module._gain_on_this_machine(SHAPES, 1)

    assert asked_by_a_new_process() == 0.7
    if damage is not None:
        next(tmp_path.glob("kernels/*.json")).write_text(damage)
    assert asked_by_a_new_process() == (0.7 if damage is None else 0.8)
    module._gain_on_this_machine.cache_clear()


def test_where_pytorch_must_be_deterministic_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    model = with_lora(llama(), ["q_proj"])
    with module.fast_linears(model, tokens=10**6):
        assert not any("forward" in vars(part) for part in model.modules())


def test_scores_with_and_without_are_the_same(kernels, bos_tokenizer, monkeypatch):
    from fedbias_plugin.scoring.scorer import ScoreRequest, SentenceScorer

    model = with_lora(llama(), ["q_proj", "v_proj"])
    requests = [ScoreRequest(f"The {job} was {trait}.") for job in ("nurse", "smith") for trait in ("kind", "rude")]
    monkeypatch.setattr(module, "FEWEST_TOKENS", 10**9)
    plain = SentenceScorer(model, bos_tokenizer).score(requests)
    monkeypatch.setattr(module, "FEWEST_TOKENS", 0)
    fast = SentenceScorer(model, bos_tokenizer).score(requests)
    for first, second in zip(plain, fast, strict=True):
        np.testing.assert_allclose(first.log_probs, second.log_probs, atol=1e-4)
