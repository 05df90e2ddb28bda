"""Private training against loops of single rows, sums by hand, and epsilon by other formulas."""

import dataclasses
import importlib.util
import math
import types

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.client import Client, terms_of
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training import dp, per_example
from fedbias_plugin.training.accounting import epsilon_of, sigma_for
from fedbias_plugin.training.base import ClientRound, LocalTraining
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.dp import Plan, Private, generators
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.models import load_model
from fedbias_plugin.training.parameters import live_parameters, read_state, write_state
from fedbias_plugin.training.per_example import PerExample, clipped_sum
from fedbias_plugin.training.terms import Prox, Scaffold
from tests.models import add_lora

pytest.importorskip("opacus")
FAMILIES = ["llama", "mistral", "phi3", "gemma2", "gpt2"]
SETTINGS = TrainingSettings(batch_size=4, learning_rate=1e-3, max_steps=2, num_rounds=3)
PLAIN = {"dp_noise_multiplier": 0.0, "dp_max_grad_norm": 1e9}


def model_of(make, family="llama", kind="lora", *, trained_b=False):
    """A model with adapters on every linear layer, or all of its weights; B is zero unless it is ``trained_b``."""
    if kind == "full":
        return make.model(family)
    model = add_lora(make.model(family), r=2, alpha=4, dropout=0.0, seed=3, target_modules="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if trained_b and "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def fit(model, rows, settings=SETTINGS, *, client=0, round_idx=0, **flags):
    """One client's round with the term ``dp`` alone."""
    trained = Client(model, [Private(**flags)], task=Sft(), settings=settings)
    return trained.fit(trained.begin(client, round_idx, read_state(model)), rows)


def largest_change(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in other)


def test_two_gradients_are_clipped_summed_and_divided_as_by_hand():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    parameter = torch.nn.Parameter(torch.zeros(2))

    class Rows:
        def clipped_sum(self, batch, sizes, bound):
            total, norms = clipped_sum([batch], bound)
            return per_example.ClippedSum(total, norms, torch.zeros(len(sizes)))

    local = types.SimpleNamespace(
        parameters={"p": parameter}, settings=SETTINGS, features=list(rows), collate=torch.stack
    )
    plan = Plan(rate=1.0, size=2, local_steps=1, steps=1, delta=1e-5, sigma=0.0, epsilon=None)
    total, (_, norms) = Private(dp_noise_multiplier=0.0, dp_max_grad_norm=1.0)._noisy(
        Rows(), local, [[0], [1]], None, plan
    )
    assert total[0].tolist() == pytest.approx([0.45, 0.6])
    assert norms == pytest.approx([5.0, 0.5])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradients_of_a_batch_are_those_of_its_rows_one_by_one(make, monkeypatch, family, kind, checkpointing):
    model, rows = model_of(make, family, kind, trained_b=True), make.features(12, 7, 9, 3)
    parameters, found = live_parameters(model), []
    monkeypatch.setattr(
        per_example, "clipped_sum", lambda parts, bound: (found.extend(parts), clipped_sum(parts, bound))[1]
    )
    with training_mode(model, checkpointing):
        model.train()
        with PerExample(model, parameters, checkpointing) as gradients:
            result = gradients.clipped_sum(PaddingCollator(0)(rows), [1] * 4, 1e9)
    for number, row in enumerate(rows):
        model.zero_grad()
        loss = model(**PaddingCollator(0)([row])).loss
        loss.backward()
        assert float(result.losses[number]) == pytest.approx(loss.item(), abs=1e-5)
        for one, parameter in zip(found, parameters.values(), strict=True):
            wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(one[number], wanted, atol=1e-5, rtol=0)
    assert not any(hasattr(p, name) for p in model.parameters() for name in ("grad_sample", "_forward_counter"))
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_without_noise_and_clipping_it_is_plain_training(make, kind):
    rows = make.features(9, 9, 9, 9)  # as many tokens each: elsewhere the Trainer weighs rows by their tokens
    private = fit(model_of(make, kind=kind), rows, **PLAIN)
    model = model_of(make, kind=kind)
    client = Client(model, [], task=Sft(), settings=dataclasses.replace(SETTINGS, batch_size=4))
    plain = client.fit(client.begin(0, 0, read_state(model)), rows)
    if kind == "full":  # whose gradients the Trainer clips to norm 1
        parameters = live_parameters(model)
        assert private.extra["dp_gradient_norm"] > 1
        plain = types.SimpleNamespace(state=by_hand(model_of(make, kind=kind), rows), loss=plain.loss)
        assert parameters.keys() == plain.state.keys()
    else:
        assert private.extra["dp_gradient_norm"] < 1
    assert largest_change(private.state, plain.state) < 1e-6
    assert private.loss == pytest.approx(plain.loss, abs=1e-5 if kind == "lora" else 1e-2)


def by_hand(model, rows):
    """Two steps of Adam on all rows."""
    model.train()
    optimizer = torch.optim.Adam(live_parameters(model).values(), lr=1e-3)
    for _ in range(2):
        model(**PaddingCollator(0)(rows)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return read_state(model)


@pytest.mark.parametrize("flags", [{"dp_noise_multiplier": 1.0}, {**PLAIN}], ids=["noise", "no noise"])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_trained_tensor_has_moved_after_two_steps(make, family, kind, flags):
    model, rows = model_of(make, family, kind), make.features(12, 7, 9, 5)
    start = read_state(model)
    state = fit(model, rows, **flags).state
    still = [name for name in start if torch.equal(start[name], state[name])]
    assert state.keys() == start.keys()
    assert not still


def test_batches_that_are_summed_are_one_batch(make):
    rows = make.features(5, 9, 7, 6, 8)
    one = fit(model_of(make), rows, **PLAIN)
    two = dataclasses.replace(SETTINGS, batch_size=2, gradient_accumulation_steps=2)
    assert largest_change(fit(model_of(make), rows, two, **PLAIN).state, one.state) < 1e-6


def local_of(make, terms=(), **changes):
    """Rows without a trained token: their gradients are zero, and the noise is all there is."""
    model, rows = model_of(make), make.features(5, 6, prompt=9)
    settings = dataclasses.replace(SETTINGS, **changes)
    job = ClientRound(0, 0, read_state(model), rows=2, mu=50.0, learning_rate=0.5)
    local = LocalTraining(model, live_parameters(model), rows, PaddingCollator(0), settings, terms)
    for term in terms:
        term.begin(job, local.parameters)
    return local, job


def sgd(local, job):
    Private(dp_noise_multiplier=2.0, dp_optimizer="sgd").train(job, local)
    return read_state(local.model)


def test_noise_has_the_right_size_and_is_the_same_again_for_run_round_and_client_alone(make):
    local, job = local_of(make, max_steps=1)
    start, state = job.theta, sgd(local, job)
    moves = torch.cat([((state[name] - start[name]) / 0.5).flatten() for name in start])
    # sigma C / (q n) = 2 * .1 / 2
    assert float(moves.std()) == pytest.approx(0.1, rel=0.1)
    again = sgd(*local_of(make, max_steps=1))
    assert largest_change(state, again) == 0
    for change in ({"client": 1}, {"round_idx": 1}):
        other, other_job = local_of(make, max_steps=1, num_clients=2, sample_clients=2)
        assert largest_change(sgd(other, dataclasses.replace(other_job, **change)), again) > 0.01
    other, other_job = local_of(make, max_steps=1, seed=7)
    assert largest_change(sgd(other, other_job), again) > 0.01


def test_the_proximal_term_joins_after_the_noise_unclipped(make):
    first, both = sgd(*local_of(make, max_steps=1)), sgd(*local_of(make))
    local, job = local_of(make, [Prox()])
    with_prox = sgd(local, job)
    for name, start in job.theta.items():
        # theta_2 = theta_1 - lr (noise_2 + mu (theta_1 - theta_0)), lr .5, mu 50: far beyond C = .1
        assert torch.allclose(with_prox[name], both[name] - 0.5 * 50 * (first[name] - start), atol=1e-5)


def test_the_control_variates_correct_after_every_noisy_step(make):
    without = sgd(*local_of(make))
    local, job = local_of(make)
    job.broadcast["control_variate"] = {name: torch.full_like(one, 3.0) for name, one in job.theta.items()}
    local.terms = [Scaffold()]
    local.terms[0].begin(job, local.parameters)
    with_controls = sgd(local, job)
    for name in without:
        assert torch.allclose(with_controls[name], without[name] - 2 * 0.5 * 3.0, atol=1e-5)


def test_a_step_without_a_row_is_noise_and_is_counted(make):
    rows, settings = make.features(*[5] * 20), dataclasses.replace(SETTINGS, batch_size=1, num_rounds=40)

    def first_draw(round_idx):
        draws = generators(settings, ClientRound(0, round_idx, {}), torch.device("cpu"))
        return [int((torch.rand(20, generator=draws.rows) < 1 / 20).sum()) for _ in range(2)]

    empty = next(number for number in range(40) if first_draw(number) == [0, 0])
    model = model_of(make)
    start = read_state(model)
    update = fit(model, rows, settings, round_idx=empty, dp_noise_multiplier=1.0, dp_accountant="rdp")
    assert (update.steps, update.loss) == (2, None)
    assert largest_change(update.state, start) > 1e-4
    spent = epsilon_of("rdp", 1.0, 1 / 20, 2 * (empty + 1), 1 / 40)
    assert update.extra["dp_epsilon"] == spent
    assert "dp_clipped" not in update.extra


def exact(sigma, delta):
    """Of one Gaussian release (Balle and Wang 2018, arXiv:1805.06530, Theorem 8)."""

    def excess(epsilon):
        half, rest = 1 / (2 * sigma), epsilon * sigma
        return norm.cdf(half - rest) - math.exp(epsilon) * norm.cdf(-half - rest) - delta

    return brentq(excess, 0, 50)


def test_epsilon_of_one_release_is_that_of_the_analytic_gaussian():
    assert exact(1.0, 1e-5) == pytest.approx(4.377, abs=5e-4)
    assert exact(1.0, 1e-5) <= epsilon_of("prv", 1.0, 1.0, 1, 1e-5) <= 4.377 + 0.02
    assert exact(1.0, 1e-5) < epsilon_of("rdp", 1.0, 1.0, 1, 1e-5) < 4.753


def test_renyi_orders_from_2_to_256_give_the_published_bound():
    from opacus.accountants import RDPAccountant

    counter = RDPAccountant()
    counter.history = [(1.0, 1.0, 1)]
    assert counter.get_epsilon(1e-5, alphas=range(2, 257)) == pytest.approx(4.753, abs=5e-4)
    # by hand: min over a of a/2 + log((a-1)/a) - (log delta + log a)/(a-1)
    bounds = [a / 2 + math.log((a - 1) / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in range(2, 257)]
    assert min(bounds) == pytest.approx(4.753, abs=5e-4)


def test_sampling_a_hundredth_of_the_rows_makes_a_thousand_steps_cheap():
    assert epsilon_of("rdp", 1.0, 0.01, 1000, 1e-5) <= 2.11
    assert 1.828 <= epsilon_of("prv", 1.0, 0.01, 1000, 1e-5) <= 1.828 + 0.02  # 1.828 by dp-accounting's PLD


@pytest.mark.parametrize(("accountant", "known"), [("prv", (1.353, 0.723, 0.537)), ("rdp", (1.480, 0.777, 0.574))])
def test_the_noise_that_is_chosen_keeps_the_budget_and_wastes_little(accountant, known):
    cost, found = (0.1, 100, 1 / 1800), []
    for target in (3.0, 10.0, 20.0):
        found.append(sigma_for(accountant, target, *cost))
        assert 0.99 * target < epsilon_of(accountant, found[-1], *cost) <= target
    assert found == pytest.approx(known, rel=0.01)  # by Opacus' own search
    assert found == sorted(found, reverse=True)


def test_a_budget_that_no_noise_keeps_is_refused():
    with pytest.raises(UserError, match=r"--dp_epsilon 1e-06 cannot be kept over 100 steps"):
        sigma_for("rdp", 1e-6, 1.0, 100, 1e-5)


def test_a_client_trains_its_planned_steps_and_none_beyond(make, caplog):
    caplog.set_level("INFO")
    rows, flags = make.features(5, 9, 7, 6), {"dp_epsilon": 8.0, "dp_accountant": "rdp"}
    settings = dataclasses.replace(SETTINGS, num_clients=4, sample_clients=2)
    took_part = [settings.rounds_of(client) for client in range(4)]
    assert sum(took_part) == 2 * 3
    client, idle = took_part.index(max(took_part)), took_part.index(min(took_part))
    model, term = model_of(make), Private(**flags)
    term.plan(model, settings, {client: range(4)})
    plan = term.plan_of(client, 4, settings)
    assert (plan.steps, plan.rate, plan.delta) == (2 * max(took_part), 1.0, 1 / 8)
    assert 7.9 < plan.epsilon <= 8
    assert f"privacy of client {client}: {plan.steps} steps planned (2 a round)" in caplog.text
    last = next(n for n in reversed(range(3)) if settings.rounds_of(client, n + 1) > settings.rounds_of(client, n))
    spent = fit(model, rows, settings, client=client, round_idx=last, **flags)
    assert spent.extra["dp_epsilon"] == plan.epsilon
    with pytest.raises(UserError, match=rf"Client {client} is not planned to train in round 4"):
        fit(model, rows, settings, client=client, round_idx=3, **flags)
    absent = next(n for n in range(3) if settings.rounds_of(idle, n + 1) == settings.rounds_of(idle, n))
    with pytest.raises(UserError, match=rf"Client {idle} is not planned to train in round {absent + 1}"):
        fit(model, rows, settings, client=idle, round_idx=absent, **flags)
    Private(**flags, dp_delta=0.3).plan(model, settings, {client: range(4)})
    assert f"--dp_delta 0.3 promises nothing to the 4 rows of client {client}." in caplog.text


def test_what_is_trained_and_what_needs_gradients_must_be_the_same(make):
    model = model_of(make)
    some = dict(list(live_parameters(model).items())[:-1])
    with pytest.raises(UserError, match="is not what requires gradients"):
        PerExample(model, some, False)


def test_models_and_batches_without_gradients_of_single_rows_are_refused(make):
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    prefix = get_peft_model(make.model(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(UserError, match="one for the whole batch"):
        Private(dp_noise_multiplier=1.0).plan(prefix, SETTINGS, {0: range(4)})
    with pytest.raises(UserError, match="DoRA"):
        per_example.check_fits(get_peft_model(make.model(), LoraConfig(use_dora=True, task_type="CAUSAL_LM")))
    normed = make.model()
    normed.extra = torch.nn.BatchNorm1d(4)
    with pytest.raises(UserError, match="extra is a batch norm"):
        per_example.check_fits(normed)
    model = model_of(make)
    packed = {name: tensor.reshape(1, -1) for name, tensor in PaddingCollator(0)(make.features(6, 6)).items()}
    with PerExample(model, live_parameters(model), False) as gradients, pytest.raises(UserError, match="packed"):
        gradients.clipped_sum(packed, [1, 1], 1.0)
    positions = make.model("gpt2").train()  # without positions for every row GPT-2's are looked up once a batch
    with PerExample(positions, live_parameters(positions), False) as gradients:
        gradients._takes_positions = False
        with pytest.raises(UserError, match=r"no gradient for every row of transformer\.wpe\.weight"):
            gradients.clipped_sum(PaddingCollator(0)(make.features(6, 6)), [1, 1], 1.0)


def test_a_model_in_4_bits_has_gradients_of_single_rows(make, tmp_path):
    pytest.importorskip("bitsandbytes")
    make.model().save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), load_in_4bit=True)
    model, rows = add_lora(loaded, r=2, alpha=4, dropout=0.0, seed=3), make.features(12, 7)
    start = read_state(model)
    both = fit(model, rows, **PLAIN | {"dp_optimizer": "sgd"}, settings=dataclasses.replace(SETTINGS, max_steps=1))
    moved = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    model.train()
    for row in rows:
        write_state(model, start)
        model.zero_grad()
        model(**PaddingCollator(0)([row])).loss.backward()
        for name, parameter in live_parameters(model).items():
            moved[name] += 1e-3 * parameter.grad / 2
    size = max(float(change.abs().max()) for change in moved.values())
    assert size > 0
    for name, change in moved.items():  # it computes in bfloat16
        assert float((start[name] - both.state[name] - change).abs().max()) < 0.02 * size


def test_flags_that_break_the_promise_and_a_missing_library_are_refused(monkeypatch):
    with pytest.raises(UserError, match="give one"):
        Private(dp_epsilon=3.0, dp_noise_multiplier=1.0).check_flags({})
    for flag, instead in (("bf16", "drop --bf16"), ("load_in_8bit", "give --load_in_4bit")):
        with pytest.raises(UserError, match=instead):
            Private(dp_epsilon=3.0).check_flags({flag: True})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--dp_epsilon needs Opacus.*fedbias_plugin\[privacy\]"):
        Private(dp_epsilon=3.0).check_flags({})


def test_only_one_term_of_a_run_may_train(monkeypatch):
    flags = types.SimpleNamespace(prox_mu=0.1, **{spec.name: spec.default for spec in dataclasses.fields(Private)})
    flags.dp_noise_multiplier = 1.0
    assert [term.name for term in terms_of("fedprox", flags)] == ["prox", "dp"]
    monkeypatch.setattr(Prox, "trains", True)
    with pytest.raises(UserError, match="prox and dp would both train"):
        terms_of("fedprox", flags)
    assert [dp.Private(**on).is_on for on in ({}, {"dp_epsilon": 1.0}, {"dp_noise_multiplier": 0.0})] == [
        False,
        True,
        True,
    ]
