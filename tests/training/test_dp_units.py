"""A row and its copies as one unit of privacy: drawn, clipped and counted together."""

import dataclasses
import math

import pytest
import torch

from fedbias_plugin.federation.client import Client
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training import per_example
from fedbias_plugin.training.base import ClientRound, LocalTraining
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.dp import Plan, Private, generators, rows_of_units
from fedbias_plugin.training.isolation import training_mode
from fedbias_plugin.training.parameters import live_parameters, read_state
from fedbias_plugin.training.per_example import PerExample, clipped_sum, passes
from tests.models import add_lora

pytest.importorskip("opacus")
SETTINGS = TrainingSettings(batch_size=3, learning_rate=1e-3, max_steps=2, num_rounds=3)
WITHOUT_NOISE = Plan(rate=1.0, size=4, local_steps=1, steps=1, delta=1e-5, sigma=0.0, epsilon=None)
PAIRS = [0, 1, 2, 0, 3, 2]
"""The rows 0 and 3 are one unit, and so are 2 and 5."""


def lora(make):
    model = add_lora(make.model(), r=2, alpha=4, dropout=0.0, seed=3, target_modules="all-linear")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def summed(model, rows, units, bound, settings=SETTINGS):
    """What the term makes of all units without noise: ``size`` times the gradient, losses and norms."""
    parameters = live_parameters(model)
    local = LocalTraining(model, parameters, rows, PaddingCollator(0), settings, units=units)
    term = Private(dp_noise_multiplier=0.0, dp_max_grad_norm=bound)
    with training_mode(model, False), PerExample(model.train(), parameters, False) as gradients:
        total, (losses, norms) = term._noisy(gradients, local, rows_of_units(local), None, WITHOUT_NOISE)
    return torch.cat([part.flatten() for part in total]) * WITHOUT_NOISE.size, losses, norms


def gradient(model, *rows):
    """Of the mean of the rows' losses, one after the other."""
    parameters = list(live_parameters(model).values())
    loss = sum(model(**PaddingCollator(0)([row])).loss for row in rows) / len(rows)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]), loss.item()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6], ids="at most {} rows a pass".format)
def test_a_unit_is_clipped_as_the_mean_of_its_rows_as_in_a_loop_by_hand(make, batch_size):
    model, rows = lora(make), make.features(12, 7, 9, 5, 11, 6)
    members = [[0, 3], [1], [2, 5], [4]]
    found = [gradient(model, *(rows[index] for index in unit)) for unit in members]
    norms = [one.norm().item() for one, _ in found]
    bound = sorted(norms)[1] * 1.01  # two units are clipped, two are not
    wanted = sum(one * min(1.0, bound / norm) for (one, _), norm in zip(found, norms, strict=True))
    settings = dataclasses.replace(SETTINGS, batch_size=batch_size)
    total, losses, seen = summed(model, rows, PAIRS, bound, settings)
    assert torch.allclose(total, wanted, atol=1e-5 * bound, rtol=1e-5)
    assert sorted(seen) == pytest.approx(sorted(norms), rel=1e-5)
    assert sorted(losses) == pytest.approx(sorted(loss for _, loss in found), rel=1e-5)


def test_a_pair_adds_at_most_c_and_two_rows_twice_that(make):
    model, (row, other) = lora(make), make.features(9, 12)
    bound = 0.5 * min(gradient(model, one)[0].norm().item() for one in (row, other))
    for copy in (row, other):
        assert summed(model, [row, copy], [0, 0], bound)[0].norm().item() <= bound * (1 + 1e-5)
    assert summed(model, [row, row], [0, 1], bound)[0].norm().item() == pytest.approx(2 * bound)
    assert summed(model, [row, row], None, bound)[0].norm().item() == pytest.approx(2 * bound)
    assert bound < summed(model, [row, other], None, bound)[0].norm().item() <= 2 * bound


def test_a_row_whose_response_is_cut_off_is_half_of_its_unit_all_the_same(make):
    model, (row, cut) = lora(make), [make.features(9)[0], make.features(9, prompt=9)[0]]
    total, losses, _ = summed(model, [cut, row], [0, 0], 1e9)
    alone, loss = gradient(model, row)
    assert torch.allclose(total, alone / 2, atol=1e-6)
    assert losses == pytest.approx([loss / 2])


def update(make, rows, units, settings=SETTINGS, **flags):
    model = lora(make)
    client = Client(model, [Private(**flags)], task=Sft(), settings=settings, units=units)
    return client.fit(client.begin(0, 0, read_state(model)), rows)


def test_rows_that_are_units_of_their_own_train_to_the_bytes_of_rows(make):
    rows, flags = make.features(12, 7, 9, 5, 11, 6, 8), {"dp_noise_multiplier": 1.0, "dp_accountant": "rdp"}
    one, other = update(make, rows, None, **flags), update(make, rows, {0: range(7)}, **flags)
    assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert (one.loss, one.extra) == (other.loss, other.extra)
    pairs = update(make, rows, {0: [0, 1, 2, 3, 4, 5, 5]}, **flags)
    assert any(not torch.equal(one.state[name], pairs.state[name]) for name in one.state)


def test_units_are_drawn_together_and_what_is_planned_and_spent_counts_them(make, caplog):
    caplog.set_level("INFO")
    rows, flags = make.features(*range(5, 13)), {"dp_noise_multiplier": 1.0, "dp_accountant": "rdp"}
    units, seen = [0, 1, 2, 3, 4, 5, 0, 3], []
    settings = dataclasses.replace(SETTINGS, batch_size=2)
    model, term = lora(make), Private(**flags)
    client = Client(model, [term], task=Sft(), settings=settings, units={0: units, 1: range(6)})
    client.plan()
    plan = term.plan_of(0, 6, settings)
    assert (plan.rate, plan.size, plan.delta) == (2 / 6, 2, 1 / 12)
    said = [record.getMessage() for record in caplog.records]
    assert [line.split(", ")[1] for line in said] == [
        "each of 6 units (a row with its copies) in a step with probability 0.3333",
        "each row in a step with probability 0.3333",
    ]
    noisy = Private._noisy

    def watched(self, gradients, local, drawn, *rest):
        seen.append(drawn)
        return noisy(self, gradients, local, drawn, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Private, "_noisy", watched)
        result = client.fit(client.begin(0, 0, read_state(model)), rows)
    draws = generators(settings, ClientRound(0, 0, {}), torch.device("cpu")).rows
    members = [[0, 6], [1], [2], [3, 7], [4], [5]]
    masks = [torch.rand(6, generator=draws) < 2 / 6 for _ in range(2)]
    assert seen == [[members[n] for n in range(6) if mask[n]] for mask in masks]
    assert (result.rows, result.extra["dp_delta"]) == (8, 1 / 12)


def test_with_epochs_a_unit_is_drawn_as_often_as_a_row_is(make):
    settings = dataclasses.replace(SETTINGS, local_epochs=4)
    plan = Private(dp_noise_multiplier=0.0).plan_of(0, len(set(PAIRS)), settings)
    assert plan.rate * plan.local_steps >= 4
    assert plan.local_steps == 4 * math.ceil(4 / 3)


def test_no_pass_is_larger_than_a_batch_unless_a_unit_is():
    units = [[0, 9], [1], [2, 8, 7], [3], [4], [5]]
    for most in range(1, 12):
        parts = passes(units, most)
        assert sorted(unit for part in parts for unit in part) == sorted(units)
        assert all(sum(map(len, part)) <= most or len(part) == 1 for part in parts)
    assert passes([], 4) == []
    assert passes([[n] for n in range(7)], 3) == [[[0], [3], [6]], [[1], [4]], [[2], [5]]]


def test_a_unit_without_a_finite_gradient_adds_nothing_and_leaves_the_others_as_they_were():
    good = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    bad = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [-3e38, 3e38]])
    total, norms = clipped_sum([torch.cat([bad, good])], 1.0)
    assert total[0].tolist() == pytest.approx([0.9, 1.2])
    assert norms.tolist()[3:] == pytest.approx([5.0, 0.5])
    assert not torch.isfinite(norms[:3]).any()
    assert clipped_sum([bad], 1.0)[0][0].tolist() == [0.0, 0.0]


def test_one_row_cannot_have_the_update_of_its_client_refused(make, monkeypatch):
    """What is refused for a loss or a norm that is no number would tell of the row, past the noise."""
    losses = per_example.row_losses

    def first_is_infinite(logits, labels):
        scale = torch.ones(len(labels))
        scale[0] = float("inf")
        return losses(logits, labels) * scale

    monkeypatch.setattr(per_example, "row_losses", first_is_infinite)
    found = update(make, make.features(12, 7, 9, 5), None, dp_noise_multiplier=1.0, dp_accountant="rdp")
    assert all(torch.isfinite(part).all() for part in found.state.values())
    assert math.isfinite(found.loss)
    assert all(map(math.isfinite, found.extra.values()))
