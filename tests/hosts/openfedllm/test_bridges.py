"""What today's libraries do otherwise than those OpenFedLLM was written for, one bridge at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

from fedbias_plugin.hosts.openfedllm.stack import detect_stack
from tests.hosts.openfedllm.runner import run_script

pytestmark = pytest.mark.skipif(detect_stack() != "current", reason="the pinned libraries need no such bridge")

PROMPTS = ["Say one.", "Tell me of the old mill, please.", "Name it.", "Rain?"]
CHOSEN = [" One.", " It stands by a river.", " Bread, and two birds, and more.", " At night."]
REJECTED = [" No!", " No.", " I will not name it, ever.", " None, none, none."]
BETA = 0.3
Build = Callable[..., Any]


@pytest.fixture
def tokenizer(host_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(host_model, pad_token="<unk>")


@pytest.fixture
def model(host_model: Path) -> Any:
    """The small model with adapters that have moved away from zero, without dropout."""
    from peft import LoraConfig
    from peft.mapping_func import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(host_model), config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.train()
    return adapted


@pytest.fixture
def build(model: Any, tokenizer: Any, tmp_path: Path) -> Build:
    """``build("dpo", rows=2, bf16=True)`` -> a trainer made as the host makes it; ``base`` makes the class."""
    from datasets import Dataset
    from transformers import TrainingArguments

    from fedbias_plugin.hosts.openfedllm.current_stack import DataCollatorForCompletionOnlyLM, DPOTrainer, SFTTrainer

    def make(kind: str, rows: int = 4, subclass: Build = lambda base: base, **settings: Any) -> Any:
        defaults = {"per_device_train_batch_size": 1, "max_steps": 1, "learning_rate": 0.0, "report_to": "none"}
        args = TrainingArguments(str(tmp_path / "out"), use_cpu=True, **(defaults | settings))
        if kind == "dpo":
            columns = {"prompt": PROMPTS[:rows], "chosen": CHOSEN[:rows], "rejected": REJECTED[:rows]}
            data, others = Dataset.from_dict(columns), {"ref_model": None, "beta": BETA}
            return subclass(DPOTrainer)(model=model, args=args, tokenizer=tokenizer, train_dataset=data, **others)
        features = []
        for prompt, response in zip(PROMPTS[:rows], CHOSEN[:rows], strict=True):
            ids, start = encoded(tokenizer, prompt, response)
            mask = [1] * len(ids)
            features.append({"input_ids": ids, "attention_mask": mask, "labels": [-100] * start + ids[start:]})
        return subclass(SFTTrainer)(
            model=model,
            tokenizer=tokenizer,
            args=args,
            max_seq_length=512,
            train_dataset=features,
            formatting_func=str,
            data_collator=DataCollatorForCompletionOnlyLM([1, 2], tokenizer=tokenizer),
        )

    return make


def encoded(tokenizer: Any, prompt: str, response: str) -> tuple[list[int], int]:
    """The tokens of both and EOS, and how many are the prompt's."""
    return tokenizer(prompt + response + "</s>").input_ids, len(tokenizer(prompt).input_ids)


def token_losses(model: Any, tokenizer: Any, prompt: str, response: str) -> torch.Tensor:
    """Cross entropy of every token of the response and EOS, row alone, plain torch."""
    ids, start = encoded(tokenizer, prompt, response)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0]
    return cross_entropy(scores[start - 1 : -1], torch.tensor(ids[start:]), reduction="none")


def preference_losses(model: Any, tokenizer: Any) -> list[float]:
    """-logsigmoid(beta ((pi_c - ref_c) - (pi_r - ref_r))) of every row, the reference without adapters."""
    found = []
    for prompt, chosen, rejected in zip(PROMPTS, CHOSEN, REJECTED, strict=True):
        policy = [-token_losses(model, tokenizer, prompt, text).sum() for text in (chosen, rejected)]
        with model.disable_adapter():
            ref = [-token_losses(model, tokenizer, prompt, text).sum() for text in (chosen, rejected)]
        found.append(-logsigmoid(BETA * ((policy[0] - ref[0]) - (policy[1] - ref[1]))).item())
    return found


def expected_mean(kind: str, model: Any, tokenizer: Any) -> float:
    """The mean over rows of their losses: what micro-batches of one row must add up to."""
    if kind == "dpo":
        return sum(preference_losses(model, tokenizer)) / 4
    rows = [token_losses(model, tokenizer, *row) for row in zip(PROMPTS, CHOSEN, strict=True)]
    by_token = torch.cat(rows).mean().item()
    by_row = sum(row.mean().item() for row in rows) / 4
    assert abs(by_row - by_token) > 1e-3, "rows too alike to tell one from the other"
    return by_row


def test_the_bridges_give_trl_and_peft_what_the_host_imports(tmp_path):
    script = "from fedbias_plugin.hosts.openfedllm import stack\nstack.install()\n"
    script += "from trl import DataCollatorForCompletionOnlyLM, DPOTrainer, SFTTrainer\n"
    script += "from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict\n"
    script += "DataCollatorForCompletionOnlyLM([1], tokenizer=None)\n"
    script += "print(*(c.__module__ for c in (SFTTrainer, DPOTrainer, get_peft_model, get_peft_model_state_dict)))\n"
    (tmp_path / "script.py").write_text(script)
    run = run_script(tmp_path, "script.py", log=tmp_path / "log.txt")
    assert run.code == 0, run.text
    modules = ["current_stack", "current_stack", "peft_bridges", "peft_bridges"]
    assert run.text.split()[-4:] == [f"fedbias_plugin.hosts.openfedllm.{module}" for module in modules]


def test_the_first_sft_loss_is_the_cross_entropy_of_the_response_tokens_of_the_batch(build, model, tokenizer):
    rows = [token_losses(model, tokenizer, *row) for row in zip(PROMPTS, CHOSEN, strict=True)]
    found = build("sft", per_device_train_batch_size=4).train().training_loss
    assert found == pytest.approx(torch.cat(rows).mean().item(), abs=1e-5)


def test_packed_rows_are_refused():
    from fedbias_plugin.errors import UserError
    from fedbias_plugin.hosts.openfedllm.current_stack import SFTTrainer

    with pytest.raises(UserError, match=r"--multi_turn_task packs rows, which works on the pinned stack"):
        SFTTrainer(args=None, train_dataset=None, tokenizer=None, packing=True)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_micro_batches_of_a_step_count_the_same(build, model, tokenizer, kind):
    expected = expected_mean(kind, model, tokenizer)
    assert build(kind, gradient_accumulation_steps=4).train().training_loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_host_s_class_whose_compute_loss_does_not_know_item_counts_works(build, model, tokenizer, kind):
    def one_more(base: Any) -> Any:
        class OfHost(base):
            def compute_loss(self, model, inputs, return_outputs=False):
                found = super().compute_loss(model, inputs, return_outputs=return_outputs)
                return (found[0] + 1, found[1]) if return_outputs else found + 1

        return OfHost

    trainer = build(kind, subclass=one_more, gradient_accumulation_steps=4)
    expected = expected_mean(kind, model, tokenizer)
    assert trainer.train().training_loss == pytest.approx(expected + 1, abs=1e-5)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_trainer_neither_saves_nor_deletes_checkpoints_and_its_adamw_is_not_fused(build, tmp_path, kind):
    old = [tmp_path / f"out/checkpoint-{number}" for number in (1, 2)]
    for folder in old:
        folder.mkdir(parents=True)
    trainer = build(kind, max_steps=3, save_steps=1, save_total_limit=1, learning_rate=1e-3)
    trainer.train()
    assert sorted((tmp_path / "out").iterdir()) == old
    assert trainer.args.optim == "adamw_torch"
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(optimizer) is torch.optim.AdamW
    assert not optimizer.defaults["fused"]


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_checkpointed_activations_give_the_same_adapters(build, model, kind):
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    after = []
    for checkpointing in (False, True):
        model.load_state_dict(start)
        trainer = build(kind, gradient_checkpointing=checkpointing, learning_rate=1e-2, max_steps=2)
        assert "use_reentrant': False" in str(trainer.args.to_dict())
        trainer.train()
        after.append({name: weight.detach().clone() for name, weight in model.named_parameters() if "lora_" in name})
    assert all(not torch.equal(weight, start[name]) for name, weight in after[0].items())
    torch.testing.assert_close(after[1], after[0])


def test_a_bf16_checkpoint_is_loaded_in_float32_unless_a_dtype_is_asked_for(host_model, tmp_path):
    from transformers import AutoModelForCausalLM as Theirs

    from fedbias_plugin.hosts.openfedllm.current_stack import AutoModelForCausalLM

    Theirs.from_pretrained(host_model, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert Theirs.from_pretrained(tmp_path, torch_dtype=None).dtype == torch.bfloat16
    options = {"device_map": None, "quantization_config": None, "trust_remote_code": False}
    assert AutoModelForCausalLM.from_pretrained(str(tmp_path), torch_dtype=None, **options).dtype == torch.float32
    half = AutoModelForCausalLM.from_pretrained(str(tmp_path), torch_dtype=torch.float16, **options)
    assert half.dtype == torch.float16


@pytest.mark.parametrize(("kind", "bf16"), [("sft", True), ("dpo", False)])
def test_forward_is_as_before_after_many_trainers(build, model, kind, bf16):
    from fedbias_plugin.hosts.openfedllm.client_training import preserved, watch_training

    modules = [model, model.get_base_model()]
    before, results = [module.__dict__.get("forward") for module in modules], []
    for _ in range(4):
        forwards = preserved(model)
        trainer = build(kind, rows=1, bf16=bf16)
        watch_training(trainer, forwards, results.append)
        returned = trainer.train()
        assert results[-1] is returned
        assert [module.__dict__.get("forward") for module in modules] == before
    assert len(results) == 4


def test_every_dpo_trainer_takes_the_model_without_adapters_as_reference(build, model, tokenizer):
    expected = preference_losses(model, tokenizer)
    assert all(abs(loss - 0.6931) > 1e-3 for loss in expected), "a policy like its reference would prove nothing"
    for _ in range(2):
        trainer = build("dpo", per_device_train_batch_size=4)
        assert list(model.peft_config) == ["default"]
        assert not any(".ref." in name for name, _ in model.named_parameters())
        assert trainer.train().training_loss == pytest.approx(sum(expected) / 4, abs=1e-5)


def test_dpo_takes_beta_the_host_s_arguments_and_trl_s_old_length(build):
    settings = {"learning_rate": 0.125, "per_device_train_batch_size": 3, "lr_scheduler_type": "constant"}
    trainer = build("dpo", gradient_accumulation_steps=5, max_steps=7, **settings)
    found = trainer.args
    assert (found.beta, found.max_length, found.learning_rate, found.max_steps) == (BETA, 512, 0.125, 7)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (3, 5)
    assert found.lr_scheduler_type == "constant"


@pytest.mark.parametrize("flag", ["is_loaded_in_4bit", "is_loaded_in_8bit"])
def test_adapters_of_a_quantised_model_stay_in_float32(build, model, flag):
    setattr(model, flag, True)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    build("dpo")
    for name, weight in trained.items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, before[name])


def test_nothing_is_trained_when_no_row_of_a_batch_has_a_response(build, model):
    trainer = build("sft", rows=1)
    trainer.train_dataset[0]["labels"] = [-100] * len(trainer.train_dataset[0]["input_ids"])
    assert trainer.train().training_loss == 0


def test_peft_s_functions_pass_whole_models_through(host_model):
    from transformers import AutoModelForCausalLM

    from fedbias_plugin.hosts.openfedllm import peft_bridges

    model = AutoModelForCausalLM.from_pretrained(host_model)
    assert peft_bridges.get_peft_model(model, None) is model
    state = {name: weight.clone() + 1 for name, weight in peft_bridges.get_peft_model_state_dict(model).items()}
    peft_bridges.set_peft_model_state_dict(model, state)
    assert state.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weight, state[name]) for name, weight in model.named_parameters())


def test_the_trainer_of_a_client_gets_the_steps_of_its_epochs_and_its_own_seed():
    from fedbias_plugin.hosts.openfedllm.client_training import ClientTraining

    plugin = SimpleNamespace(local_epochs=3, schedule_seed=5)
    training = ClientTraining(SimpleNamespace(script_args=None, fed_args=None, plugin=plugin), pinned=False)
    seeds = set()
    for client, round_idx in ((0, 0), (1, 0), (0, 1)):
        args = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=-1, seed=42)
        training.set_length_and_seed(args, 21, client, round_idx)
        assert args.max_steps == 9  # 21 rows are 6 batches, 3 steps an epoch
        seeds.add(args.seed)
    assert len(seeds | {42}) == 4
