"""Local training against a plain loop written here: AdamW, clipping, the proximal term, the control variates."""

import dataclasses
import gc
import random
import weakref

import numpy as np
import pytest
import torch
from transformers import Trainer

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation import client as client_module
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.client_trainer import ClientTrainer, TrainingSettings
from fedbias_plugin.training.parameters import live_parameters, read_state, write_state
from tests.models import add_lora

STEP = TrainingSettings(batch_size=4, learning_rate=1e-2, max_steps=3)


def lora(make, family="llama", dropout=0.0, seed=3, **options):
    return add_lora(make.model(family), r=2, alpha=4, dropout=dropout, seed=seed, **options)


def train(
    model,
    features,
    settings=STEP,
    *,
    fed_alg="fedavg",
    client=0,
    round_idx=0,
    state=None,
    prox_mu=0.0,
    local_control=None,
    global_control=None,
):
    """One client's round; what it keeps and sends of SCAFFOLD is in its update."""
    trained = Client(model, terms_of(fed_alg, HostArguments(), BiasArguments()), task=Sft(), settings=settings)
    trained.kept = {client: {"control": local_control}} if local_control is not None else {}
    broadcast = {"control_variate": global_control} if global_control is not None else {}
    theta = state if state is not None else read_state(model)
    return trained.fit(trained.begin(client, round_idx, theta, mu=prox_mu, broadcast=broadcast), features)


def plain_loop(model, steps_of_rows, lr, mu=0.0, correction=None):
    """AdamW by its formula. ``steps_of_rows``: for each step, its micro-batches (lists of rows); no padding is used."""
    parameters = live_parameters(model)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses = []
    for step, batches in enumerate(steps_of_rows, start=1):
        losses.append(sum(backward(model, parameters, start, rows, mu, len(batches)) for rows in batches))
        norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in parameters.values()))
        with torch.no_grad():
            for name, p in parameters.items():
                gradient = p.grad * min(1.0, 1.0 / (norm + 1e-6))
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                root = torch.sqrt(second[name] / (1 - 0.999**step)) + 1e-8
                p -= lr * first[name] / (1 - 0.9**step) / root
                if correction is not None:
                    p -= lr * correction[name]
                p.grad = None
    return read_state(model), sum(losses) / len(losses)


def backward(model, parameters, start, rows, mu, batches):
    """Adds the gradient of one micro-batch; its loss is the mean over the trained tokens of its rows."""
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        kept = labels != -100
        total = total - torch.log_softmax(logits[kept], -1)[torch.arange(int(kept.sum())), labels[kept]].sum()
        count += int(kept.sum())
    proximal = sum(((p - start[name]) ** 2).sum() for name, p in parameters.items())
    loss = (total / count + mu / 2 * proximal) / batches
    loss.backward()
    return loss.item()


def assert_close(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def largest_change(state, other):
    return max((state[name] - other[name]).abs().max().item() for name in state)


@pytest.fixture(params=["lora", "whole"])
def model(request, make):
    return lora(make) if request.param == "lora" else make.model()


@pytest.fixture
def rows(make):
    return make.features(5, 9, 7, 6)


def test_a_round_is_adamw_with_clipping_on_the_responses(model, rows):
    start = read_state(model)
    update = train(model, rows)
    write_state(model, start)
    wanted, loss = plain_loop(model, [[rows]] * 3, 1e-2)
    assert_close(update.state, wanted)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    assert update.steps == 3
    assert largest_change(update.state, start) > 0.01
    assert (update.sent, update.keeps) == ({}, {})


def test_micro_batches_count_the_same_whatever_their_length(model, make):
    rows = make.features(4, 12)
    start = read_state(model)
    update = train(model, rows, dataclasses.replace(STEP, batch_size=1, gradient_accumulation_steps=2))
    write_state(model, start)
    wanted, loss = plain_loop(model, [[rows[:1], rows[1:]]] * 3, 1e-2)
    assert_close(update.state, wanted)
    assert update.loss == pytest.approx(loss, abs=1e-5)


def test_fedprox_adds_half_mu_times_the_squared_distance_to_every_micro_batch(model, make):
    rows = make.features(4, 12)
    start = read_state(model)
    settings = dataclasses.replace(STEP, batch_size=1, gradient_accumulation_steps=2)
    update = train(model, rows, settings, fed_alg="fedprox", prox_mu=5.0)
    write_state(model, start)
    wanted, loss = plain_loop(model, [[rows[:1], rows[1:]]] * 3, 1e-2, mu=5.0)
    assert_close(update.state, wanted)
    assert update.loss == pytest.approx(loss, abs=1e-5)
    write_state(model, start)
    without, _ = plain_loop(model, [[rows[:1], rows[1:]]] * 3, 1e-2)
    assert largest_change(update.state, without) > 1e-3


def test_scaffold_corrects_after_every_step_and_returns_option_two(model, rows):
    start = read_state(model)
    shared = {name: torch.full_like(p, 0.3) for name, p in start.items()}
    own = {name: torch.full_like(p, 0.1) for name, p in start.items()}
    update = train(model, rows, fed_alg="scaffold", state=start, local_control=own, global_control=shared)
    write_state(model, start)
    wanted, _ = plain_loop(model, [[rows]] * 3, 1e-2, correction={name: p - own[name] for name, p in shared.items()})
    assert_close(update.state, wanted)
    for name, theta in start.items():
        control = (theta - update.state[name]) / (3 * 1e-2) - 0.3 + 0.1
        torch.testing.assert_close(update.keeps["control"][name], control, atol=1e-5, rtol=0)
        torch.testing.assert_close(update.sent["control_delta"][name], control - 0.1, atol=1e-5, rtol=0)


def test_scaffold_without_controls_starts_from_zeros(model, rows):
    start = read_state(model)
    update = train(model, rows, fed_alg="scaffold", state=start)
    assert torch.equal(next(iter(update.state.values())), next(iter(train(model, rows, state=start).state.values())))
    for name, theta in start.items():
        torch.testing.assert_close(update.keeps["control"][name], (theta - update.state[name]) / 0.03)
        assert torch.equal(update.sent["control_delta"][name], update.keeps["control"][name])


def test_local_epochs_take_every_row_and_the_partial_batch(make):
    model, rows = lora(make), make.features(5, 6, 7, 8, 9)
    by_batches = dataclasses.replace(STEP, batch_size=2, local_epochs=2)
    assert train(model, rows, by_batches).steps == 6
    assert train(model, rows, dataclasses.replace(by_batches, gradient_accumulation_steps=2)).steps == 4


def test_scaffold_with_epochs_divides_by_the_steps_really_done(make):
    model, rows = lora(make), make.features(5, 6, 7)
    start = read_state(model)
    update = train(
        model, rows, dataclasses.replace(STEP, batch_size=2, local_epochs=2), fed_alg="scaffold", state=start
    )
    assert update.steps == 4
    for name, theta in start.items():
        torch.testing.assert_close(update.keeps["control"][name], (theta - update.state[name]) / (4 * 1e-2))


def test_the_learning_rate_of_the_round_is_used(make):
    model, rows = lora(make), make.features(5, 9, 7, 6)
    start = read_state(model)
    settings = dataclasses.replace(STEP, num_rounds=2)
    assert settings.learning_rate_of(1) == pytest.approx((1e-2 + 1e-6) / 2)
    update = train(model, rows, settings, round_idx=1, state=start)
    write_state(model, start)
    # With four rows and batches of four the round's draw only orders the rows.
    assert_close(update.state, plain_loop(model, [[rows]] * 3, settings.learning_rate_of(1))[0])


def test_rows_follow_the_round_and_epochs_take_all():
    settings = TrainingSettings(batch_size=2, max_steps=2)
    assert settings.rows_of(30, 0) == [27, 12, 24, 28]  # as recorded from OpenFedLLM
    assert dataclasses.replace(settings, local_epochs=1).rows_of(3, 0) == [0, 1, 2]


@pytest.mark.parametrize("fed_alg", ["fedavg", "fedprox", "scaffold"])
def test_the_same_call_twice_gives_the_same_bytes_with_dropout(make, fed_alg):
    rows, updates = make.features(5, 9, 7, 6, 8), []
    for draw in (1, 2):
        model = lora(make, dropout=0.5)
        torch.manual_seed(draw)
        settings = dataclasses.replace(STEP, batch_size=2)
        updates.append(train(model, rows, settings, fed_alg=fed_alg, prox_mu=0.1))
    assert all(torch.equal(updates[0].state[name], updates[1].state[name]) for name in updates[0].state)
    assert updates[0].loss == updates[1].loss


@pytest.mark.parametrize("make_model", [lambda make: lora(make, dropout=0.3), lambda make: make.model()])
def test_what_the_trainer_leaves_out_changes_no_byte(make, make_model, monkeypatch):
    rows, updates = make.features(5, 9, 7, 6, 8), []
    settings = dataclasses.replace(STEP, batch_size=2, gradient_accumulation_steps=2, local_epochs=2)
    for trainer in (client_module.LeanTrainer, ClientTrainer):
        monkeypatch.setattr(client_module, "LeanTrainer", trainer)
        updates.append(train(make_model(make), rows, settings))
    assert updates[0].loss == updates[1].loss
    assert all(torch.equal(tensor, updates[1].state[name]) for name, tensor in updates[0].state.items())


def test_gradient_checkpointing_computes_layers_twice_and_changes_no_number(model, rows):
    start, calls = read_state(model), []
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.self_attn"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    plain, passes = train(model, rows, state=start), len(calls)
    checkpointed = train(model, rows, dataclasses.replace(STEP, gradient_checkpointing=True), state=start)
    assert_close(checkpointed.state, plain.state, tolerance=1e-6)
    assert (passes, len(calls)) == (3, 3 + 6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_nothing_but_the_weights_is_left_changed(make, checkpointing, bf16):
    model, rows = lora(make), make.features(5, 6)
    model.config.use_cache = True
    model.eval()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    forwards = model.__dict__.get("forward"), model.get_base_model().__dict__.get("forward")
    train(model, rows, dataclasses.replace(STEP, gradient_checkpointing=checkpointing, bf16=bf16, max_steps=1))
    assert (random.random(), np.random.rand(), torch.rand(1)) == wanted
    assert not any(module.training for module in model.modules())
    assert model.config.use_cache is True
    assert (model.__dict__.get("forward"), model.get_base_model().__dict__.get("forward")) == forwards
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert gc.get_freeze_count() == 0


def test_the_optimizer_is_gone_when_the_client_is_done(make, monkeypatch):
    made, create = [], torch.optim.AdamW.__init__

    def watched(self, *args, **kwargs):
        create(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(torch.optim.AdamW, "__init__", watched)
    gc.disable()
    try:
        train(lora(make), make.features(5, 6))
        assert [reference() for reference in made] == [None]
    finally:
        gc.enable()


def test_nothing_is_written_beside_the_run(make, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    train(lora(make), make.features(5, 6))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_a_client_without_trainable_token_is_refused_before_training(make):
    model, rows = lora(make), make.features(2, 1)
    before = read_state(model)
    with pytest.raises(UserError, match=r"Client 4 has no trainable token in its 2 rows.*--seq_length"):
        train(model, rows, client=4)
    with pytest.raises(UserError, match="Client 4 has no trainable token in its 0 rows"):
        train(model, [], client=4)
    assert largest_change(read_state(model), before) == 0


def test_rows_without_trainable_token_add_nothing(make):
    model, rows = lora(make), make.features(2, 9)
    start = read_state(model)
    settings = dataclasses.replace(STEP, batch_size=1, gradient_accumulation_steps=2)
    update = train(model, rows, settings, state=start)
    write_state(model, start)
    assert len(rows[0]["input_ids"]) == 2
    halves = [[rows[1:], rows[1:]]] * 3
    wanted, loss = plain_loop(model, halves, 1e-2)
    # Half the gradient: AdamW's step hardly notices, the loss is exactly half.
    assert update.loss == pytest.approx(loss / 2, rel=0.05)
    assert np.isfinite(update.loss)
    assert largest_change(update.state, wanted) < 0.02


def test_a_draw_without_any_trainable_token_is_reported(make, caplog):
    model, rows = lora(make), make.features(2, 2, 2, 9)
    settings = TrainingSettings(batch_size=1, max_steps=1)
    drawn = next(index for index in range(20) if settings.rows_of(4, index) != [3])
    update = train(model, rows, settings, client=2, round_idx=drawn)
    assert update.loss == 0.0
    assert f"Client 2, round {drawn + 1}: every row drawn has its response cut off" in caplog.text


def test_a_loss_that_is_no_number_is_handed_on_as_it_is(make):
    model, rows = lora(make), make.features(5, 6)
    state = {name: torch.full_like(tensor, float("nan")) for name, tensor in read_state(model).items()}
    assert np.isnan(train(model, rows, client=1, round_idx=2, state=state).loss)


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3", "gemma2", "gpt2"])
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_every_family_trains_its_adapter_and_nothing_else(make, family, targets):
    model, rows = lora(make, family, target_modules=targets), make.features(5, 9, 7, 6)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = read_state(model)
    update = train(model, rows, dataclasses.replace(STEP, max_steps=8), fed_alg="fedprox", prox_mu=0.01)
    first = train(model, rows, dataclasses.replace(STEP, max_steps=1), state=start)
    assert update.loss < first.loss
    assert update.state.keys() == start.keys()
    assert all("lora_" in name for name in start)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def test_any_trainer_carries_the_terms_and_lets_go_of_them(make):
    """As in a patched host: its Trainer, our terms."""
    model, rows = lora(make), make.features(5, 9, 7, 6)
    start, wanted = read_state(model), train(lora(make), rows, fed_alg="fedprox", prox_mu=5.0)
    client = Client(model, terms_of("fedprox", HostArguments(), BiasArguments()), task=Sft())
    job = client.begin(3, 0, start, rows=4, mu=5.0)
    gc.disable()
    try:
        trainer = Trainer(
            model=model,
            args=STEP.arguments(0, 3, "/nonexistent", use_cpu=True),
            train_dataset=rows,
            data_collator=PaddingCollator(0),
        )
        client.attach(trainer, job)
        result = trainer.train()
        update = client.finish(job, read_state(model), result.global_step, result.training_loss)
        watched = weakref.ref(trainer.optimizer)
        del trainer
        assert watched() is None
    finally:
        gc.enable()
    assert (update.client, update.rows, update.steps, job.learning_rate) == (3, 4, 3, 1e-2)
    assert update.loss == pytest.approx(wanted.loss, abs=1e-5)
    assert_close(update.state, wanted.state)
