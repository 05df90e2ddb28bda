"""DPO against a slow reference written here, against trl, and against numbers computed by hand."""

from __future__ import annotations

import dataclasses
import importlib.util
import math

import numpy as np
import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.rows import Row
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.metrics.base import Source
from fedbias_plugin.metrics.preference_accuracy import PreferenceAccuracy, ScoredRows
from fedbias_plugin.scoring.scorer import SentenceScorer
from fedbias_plugin.tasks import preferences
from fedbias_plugin.tasks.base import RowScores
from fedbias_plugin.tasks.dpo import Dpo
from fedbias_plugin.tasks.preferences import PairCollator, dpo_loss, dpo_margins, response_log_probs, with_reference
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.parameters import live_parameters, read_state
from fedbias_plugin.training.soft_prompt import SoftPrompt
from fedbias_plugin.training.trainables import Full, Lora
from tests.models import add_lora
from tests.training.conftest import gpt2_like, random_model

STEP = TrainingSettings(batch_size=4, learning_rate=1e-2, max_steps=1)
ROWS = [
    Row("pairs:0", "What grows?", "Barley.", False, "pairs", "Nothing at all grows there."),
    Row("pairs:1", "Who is it?", "A baker of bread and pears.", False, "pairs", "Them."),
    Row("pairs:2", "What grows in the north?", "Pears.", True, "pairs", "Barley and pears."),
]


@pytest.fixture
def pairs(make):
    """Four rows of arbitrary tokens; in two the preferred text is the longer one."""
    kept, rejected = make.features(5, 9, 7, 6), make.features(8, 4, 6, 9, prompt=3)
    return [
        {**one, **{f"rejected_{name}": values for name, values in other.items()}}
        for one, other in zip(kept, rejected, strict=True)
    ]


def lora(dropout=0.0, family="llama"):
    """A model whose adapter has moved away from its beginning."""
    model = add_lora(random_model(family), r=2, alpha=4, dropout=dropout, seed=3)
    return moved(model, 0.1, seed=4)


@torch.no_grad()
def moved(model, size, seed):
    draw = torch.Generator().manual_seed(seed)
    for parameter in live_parameters(model).values():
        parameter.add_(size * torch.randn(parameter.shape, generator=draw))
    return model


def slow(model, feature, prefix=""):
    """log pi of one response, one text at a time and token by token."""
    ids, labels = feature[f"{prefix}input_ids"], feature[f"{prefix}labels"]
    log_probs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(log_probs[at - 1, ids[at]] for at in range(1, len(ids)) if labels[at] != -100)


def slow_pairs(model, rows):
    return torch.stack([torch.stack([slow(model, row), slow(model, row, "rejected_")]) for row in rows])


def train(model, rows, settings=STEP, *, reference="auto", beta=0.1, fed_alg="fedavg", mu=0.0):
    task = Dpo(dpo_beta=beta, dpo_reference=reference)
    task.check_trainable(Lora() if hasattr(model, "peft_config") else Full())
    client = Client(model, terms_of(fed_alg, HostArguments(), BiasArguments()), task=task, settings=settings)
    return client.fit(client.begin(0, 0, read_state(model), mu=mu), rows)


def test_the_loss_of_a_margin_is_that_of_equation_7():
    log_probs, reference = torch.tensor([[-10.0, -12.0]]), torch.tensor([[-11.0, -11.5]])
    margins = dpo_margins(log_probs, reference, 0.1)  # .1 ((-10 + 11) - (-12 + 11.5))
    assert margins.tolist() == pytest.approx([0.15])
    assert float(dpo_loss(margins)) == pytest.approx(math.log1p(math.exp(-0.15)), abs=1e-7)
    assert float(dpo_loss(torch.tensor([0.15, -2.0]))) == pytest.approx((0.620957 + 2.126928) / 2, abs=1e-6)


def test_log_probabilities_are_sums_over_the_response_whatever_the_padding(pairs):
    model = lora()
    batch = PairCollator(0)(pairs)
    found = response_log_probs(model, batch).double()
    torch.testing.assert_close(found, slow_pairs(model, pairs), atol=1e-5, rtol=0)
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 7), value=-100 if name == "labels" else 0)
        for name, tensor in batch.items()
    }
    torch.testing.assert_close(response_log_probs(model, padded).double(), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reference", ["round", "auto"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_at_step_0_the_loss_is_ln_2(pairs, reference, checkpointing):
    model = lora(dropout=0.5)
    if reference == "auto":  # the model without its adapter: equal only before anything is learned
        model = add_lora(random_model(), r=2, alpha=4, dropout=0.5, seed=3)
    update = train(model, pairs, dataclasses.replace(STEP, gradient_checkpointing=checkpointing), reference=reference)
    assert update.loss == pytest.approx(math.log(2), abs=1e-6)
    assert update.extra["dpo_margin"] == pytest.approx(0, abs=1e-6)


def test_a_soft_prompt_stands_before_both_texts_and_is_left_out_of_the_reference(pairs):
    made = SoftPrompt(num_virtual_tokens=3, soft_prompt_init="random")
    model = made.prepare(random_model(), 3)
    prompted = response_log_probs(model, PairCollator(0)(pairs))
    assert train(model, pairs, reference="round").loss == pytest.approx(math.log(2), abs=1e-6)
    update = train(made.prepare(random_model(), 3), pairs, beta=1.0)
    bare = slow_pairs(random_model(), pairs).detach()
    gains = prompted.detach().double() - bare
    wanted = -torch.nn.functional.logsigmoid(gains[:, 0] - gains[:, 1]).mean()
    assert update.loss == pytest.approx(float(wanted), abs=1e-5)
    assert abs(update.loss - math.log(2)) > 1e-2


def test_every_weight_is_trained_with_the_round_s_start_as_reference(pairs):
    update = train(random_model(), pairs)
    assert update.loss == pytest.approx(math.log(2), abs=1e-6)
    assert not any(torch.equal(read_state(random_model())[name], update.state[name]) for name in update.state)


@pytest.mark.parametrize(("reference", "mu"), [("round", 0.0), ("base", 0.0), ("round", 5.0)])
def test_steps_are_adamw_down_equation_7(pairs, reference, mu):
    """With FedProx's term too; the reference stays what it was before the first step."""
    update = train(
        *(lora(dropout=0.5), pairs, dataclasses.replace(STEP, max_steps=3)),
        reference=reference,
        beta=0.5,
        fed_alg="fedprox" if mu else "fedavg",
        mu=mu,
    )
    model = lora()
    parameters = live_parameters(model)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        if reference == "base":
            with model.disable_adapter():
                known = slow_pairs(model, pairs)
        else:
            known = slow_pairs(model, pairs)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.0)
    losses, margins = [], []
    for _ in range(3):
        found = slow_pairs(model, pairs)
        margin = 0.5 * ((found[:, 0] - known[:, 0]) - (found[:, 1] - known[:, 1]))
        loss = -torch.log(1 / (1 + torch.exp(-margin))).mean()
        loss = loss + mu / 2 * sum(((p - start[name]) ** 2).sum() for name, p in parameters.items())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        losses.append(loss.item())
        margins += margin.tolist()
    assert update.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert update.extra["dpo_margin"] == pytest.approx(np.mean(margins), abs=1e-5)
    if reference == "base":  # at the round's start all margins are 0 but for rounding
        assert update.extra["dpo_accuracy"] == pytest.approx(np.mean([margin > 0 for margin in margins]))
    for name, parameter in parameters.items():
        torch.testing.assert_close(update.state[name], parameter.detach(), atol=5e-5, rtol=0)


def test_the_margin_grows_as_a_client_trains(pairs):
    model = lora()
    with torch.no_grad():
        before = slow_pairs(model, pairs)
    first = train(model, pairs, reference="round")
    update = train(lora(), pairs, dataclasses.replace(STEP, max_steps=10), reference="round")
    assert update.loss < first.loss
    assert update.extra["dpo_margin"] > first.extra["dpo_margin"] + 0.01
    trained = lora()
    with torch.no_grad():
        for name, parameter in live_parameters(trained).items():
            parameter.copy_(update.state[name])
        after = slow_pairs(trained, pairs)
    gains = after - before
    assert (gains[:, 0] > gains[:, 1]).all()


def test_the_reference_is_read_once_a_row_and_the_model_is_left_as_it_was(pairs, monkeypatch):
    model, calls = lora(dropout=0.5), []
    model.eval()
    asked = preferences.response_log_probs
    monkeypatch.setattr(
        preferences, "response_log_probs", lambda *a: calls.append(torch.is_grad_enabled()) or asked(*a)
    )
    train(model, pairs, dataclasses.replace(STEP, batch_size=2, max_steps=2), reference="round")
    assert calls == [False, False, True, True]
    assert not any(module.training for module in model.modules())
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.5}
    assert "reference" not in pairs[0]


def test_loss_and_margin_are_trl_s(pairs, tmp_path):
    """Of a reference that trl holds in a copy of the adapter, and of the model without its adapter."""
    trl = pytest.importorskip("trl", minversion="1.0", reason="the pinned trl takes other batches")
    from datasets import Dataset

    tokenizer = gpt2_like()
    model = moved(add_lora(random_model(vocab_size=len(tokenizer)), r=2, alpha=4, dropout=0.0, seed=3), 0.1, seed=4)
    asked = {"batch_size": 3, "bf16": False}
    known = {of_base: with_reference(model, pairs, PairCollator(0), **asked, of_base=of_base) for of_base in (0, 1)}
    trainer = trl.DPOTrainer(
        model=model,  # whose adapter trl copies as it is now, as "ref"
        args=trl.DPOConfig(output_dir=str(tmp_path), beta=0.3, report_to=[], bf16=False, use_cpu=True),
        train_dataset=Dataset.from_dict({"prompt": ["What"], "chosen": [" grows"], "rejected": [" here"]}),
        processing_class=tokenizer,
    )
    moved(model, 0.1, seed=5)
    for of_base, rows in known.items():
        if of_base:
            model.delete_adapter("ref")
        batch = PairCollator(0)(rows)
        with torch.no_grad():
            margins = dpo_margins(response_log_probs(model, batch), batch["reference"], 0.3)
            theirs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            theirs["completion_mask"] = (batch["labels"] != -100).long()
            loss = float(trainer._compute_loss(model, theirs, False))
        assert float(dpo_loss(margins)) == pytest.approx(loss, abs=1e-5)
        assert abs(loss - math.log(2)) > 1e-3
        assert float(margins.mean()) == pytest.approx(trainer._metrics["train"]["rewards/margins"][-1], abs=1e-5)


def test_a_frozen_part_of_an_adapter_stays_frozen_when_the_base_model_is_the_reference(pairs):
    model = lora()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    with_reference(model, pairs, PairCollator(0), batch_size=4, bf16=False, of_base=True)
    assert {name.split("lora_")[1][0] for name, p in model.named_parameters() if p.requires_grad} == {"B"}


def test_rows_become_two_texts_with_the_instruction_before_both(tokenizers):
    tokenizer = tokenizers["llama3"]
    task = Dpo()
    task.prepare(tokenizer)
    features = task.encode(ROWS, tokenizer, 100)
    for row, feature in zip(ROWS, features, strict=True):
        for prefix, text in (("", row.response), ("rejected_", row.rejected)):
            ids = [token for token in feature[f"{prefix}labels"] if token != -100]
            assert tokenizer.decode(ids).strip() == f"{text}{tokenizer.eos_token}"
            assert row.instruction in tokenizer.decode(feature[f"{prefix}input_ids"])
    assert task.token_ids(features[0]) == [features[0]["input_ids"], features[0]["rejected_input_ids"]]
    assert all(map(task.is_trainable, features))
    assert not any(map(task.is_trainable, task.encode(ROWS, tokenizer, 20)))
    batch = task.collator(7)(features)
    assert batch["input_ids"].shape == (6, max(len(ids) for one in features for ids in task.token_ids(one)))
    assert batch["input_ids"][3, : len(features[0]["rejected_input_ids"])].tolist() == features[0]["rejected_input_ids"]
    with pytest.raises(UserError, match=r"^Row pairs:1 has no rejected response"):
        task.encode([ROWS[0], dataclasses.replace(ROWS[1], rejected=None)], tokenizer, 100)


def test_a_row_is_scored_by_both_responses(tokenizers):
    tokenizer = tokenizers["llama3"]
    model = random_model(vocab_size=len(tokenizer), max_position_embeddings=256)
    task = Dpo(template="vicuna")
    task.prepare(tokenizer)
    rows = [*ROWS, Row("pairs:3", "Who?", "Me.", False, "pairs", "It is " * 200)]
    found = task.score_rows(rows, SentenceScorer(model, tokenizer), 200)
    assert np.isnan(found.tokens).tolist() == np.isnan(found.nll).tolist() == [False, False, False, True]
    end = tokenizer.eos_token_id
    for place, feature in enumerate(task.encode(ROWS, tokenizer, 200)):
        for prefix in ("", "rejected_"):  # an end of the text is trained, and not scored
            assert feature[f"{prefix}labels"].pop() == feature[f"{prefix}input_ids"].pop() == end
        kept, rejected = slow(model, feature).item(), slow(model, feature, "rejected_").item()
        assert (-found.nll[place], found.gap[place]) == pytest.approx((kept, kept - rejected), abs=1e-4)
        assert found.right[place] == (kept > rejected)


def test_the_metric_is_the_share_of_pairs_with_wilson_s_interval():
    gaps = np.array([1.0, 0.0, -2.0, 4.0, np.nan, 2.0])
    metric = PreferenceAccuracy()
    assert (metric.text_count, metric.measure(None)) == (0, None)
    scores = RowScores(gaps, np.where(np.isnan(gaps), np.nan, 1.0), gap=gaps)
    metric.prepare(Source(None, preferred=ScoredRows([None] * 6, lambda rows, scorer: scores)))
    block = metric.block(metric.result(metric.measure(None), seed=0))
    assert (block["value"], block["n"], block["gap"], block["ideal"]) == (0.6, 5, 1.0, None)
    assert block["ci95"] == pytest.approx([0.2307, 0.8824], abs=1e-4)  # statsmodels' proportion_confint(3, 5)
    assert metric.line(block) == "preference accuracy 0.6000 [0.23, 0.88] (5 pairs, gap 1.0 nats)"


@pytest.mark.parametrize("flag", ["clean_dataset", "biased_dataset"])
def test_data_sets_that_are_not_read_are_refused(flag):
    with pytest.raises(UserError, match=rf"^--{flag} rows\.json: --task dpo .* with --preference_dataset\.$"):
        BiasArguments(task="dpo", **{flag: "rows.json"})


def test_a_reference_without_an_adapter_is_refused_only_where_it_is_asked_for():
    for reference in ("auto", "round"):
        Dpo(dpo_reference=reference).check_trainable(Full())
    Dpo(dpo_reference="base").check_trainable(Lora())
    with pytest.raises(UserError, match=r"^--dpo_reference base is the model without its adapter"):
        Dpo(dpo_reference="base").check_trainable(Full())


def test_gradients_of_single_rows_are_refused():
    if importlib.util.find_spec("opacus") is None:
        pytest.skip("Opacus is an extra of its own")
    with pytest.raises(UserError, match=r"--task dpo has a loss of its own, and the term dp \(--dp_epsilon\)"):
        terms_of("fedavg", HostArguments(), BiasArguments(task="dpo", dp_epsilon=3.0))
    assert terms_of("fedavg", HostArguments(), BiasArguments(task="dpo", dp_epsilon=3.0, dp_unit="client")) == []
