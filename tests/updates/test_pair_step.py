"""``--pair_steps``: the server's own steps, bounded by the loss that they may not raise."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedbias_plugin.metrics.base import Source
from fedbias_plugin.metrics.crows_pairs import CrowsPairs
from fedbias_plugin.metrics.crows_pairs_files import Pair
from fedbias_plugin.metrics.heldout_loss import HeldoutLoss
from fedbias_plugin.metrics.suite import Suite
from fedbias_plugin.scoring.scorer import SentenceScorer
from fedbias_plugin.training.parameters import read_state, write_state
from fedbias_plugin.updates.base import ServerSide
from fedbias_plugin.updates.pair_step import PairStep, _gradient, _margins, _measured, _total

WORDS = ("nurse", "farmer", "baker", "teacher", "doctor", "driver", "singer", "writer")
PAIRS = [
    Pair(str(n), f"The {word} is very kind.", f"The {word} sings.", "stereo", "age") for n, word in enumerate(WORDS)
]
ROWS = [("The nurse:", " was kind."), ("Many people", " bake bread."), ("A farmer", " sells eggs.")]


@pytest.fixture
def server(build_model, bos_tokenizer):
    """A model that prefers the shorter sentence of every pair, half of which are probe items."""
    model = build_model("llama")
    crows, heldout = CrowsPairs(pairs=PAIRS, bama_crows_fraction=0.5), HeldoutLoss()
    heldout.prepare(Source(None, ROWS, 64))
    suite = Suite([crows, heldout], seed=1)

    def measure(state):
        write_state(model, state)
        return suite.assess(SentenceScorer(model, bos_tokenizer), ("heldout_loss",), on_half=True)

    return ServerSide(model, bos_tokenizer, suite, measure)


def test_margins_with_a_gradient_are_those_that_are_measured(server):
    leans, margins, _ = _measured(server.measure(read_state(server.model)))
    probe, _ = server.suite.splits["crows_pairs"]
    pairs = [(PAIRS[index].more, PAIRS[index].less) for index in probe]
    with torch.no_grad():
        prefix = SentenceScorer(server.model, server.tokenizer).prefix_id
        found = _margins(server, pairs, prefix, is_mean=False)
    assert found.tolist() == pytest.approx(margins["crows_pairs"].tolist(), abs=1e-3)
    assert len(leans["crows_pairs"].shares) == 4


def test_the_gradient_is_that_of_the_sum_of_squared_biases(server):
    state = read_state(server.model)
    leans, margins, _ = _measured(server.measure(state))
    direction = _gradient(
        server, state, leans, {"crows_pairs": leans["crows_pairs"].of_margins(margins["crows_pairs"])}
    )
    size = sum(float(part.square().sum()) for part in direction.values()) ** 0.5
    step = 1e-2 / size
    ends = []
    for sign in (1, -1):
        moved = {name: part + sign * step * direction[name] for name, part in state.items()}
        ends.append(_total(leans, _measured(server.measure(moved))[1]))
    slope = (ends[0] - ends[1]) / (2 * step)
    # value is 2 B sum_k s_k tanh, whose gradient is that of B^2 over 50
    assert slope == pytest.approx(50 * size**2, rel=0.05)


def test_steps_lower_the_bias_by_no_more_than_the_radius_and_do_not_raise_the_loss(server):
    new = read_state(server.model)
    draws = torch.Generator().manual_seed(0)
    theta = {name: part + 0.02 * torch.randn(part.shape, generator=draws) for name, part in new.items()}
    state, numbers = PairStep(pair_steps=2, pair_radius=0.3).step(new, theta, 1, server)
    assert numbers["pair_steps"] >= 1
    assert numbers["pair_bias_after"] < numbers["pair_bias_before"]
    assert numbers["pair_loss_after"] <= numbers["pair_loss_before"]
    far = PairStep(pair_steps=1, pair_radius=1e9).step(new, theta, 1, server)[1]  # the way by the slope bounds it
    assert far["pair_bias_after"] < far["pair_bias_before"]
    apart, step = (
        np.sqrt(sum(float((one[name] - new[name]).double().square().sum()) for name in new)) for one in (state, theta)
    )
    assert 0 < apart <= 2 * 0.3 * step * (1 + 1e-6)


def test_nothing_is_done_where_the_bias_is_within_noise_or_every_step_costs_loss(server):
    new = read_state(server.model)
    theta = {name: part + 0.01 for name, part in new.items()}
    margins = np.asarray([1.0, -1.0, 1.0, -0.9])

    def told(loss, own=margins):
        scores = SimpleNamespace(margins=(own, None))
        return SimpleNamespace(item_scores={"crows_pairs": scores}, metrics={"heldout_loss": {"loss": loss}})

    fair = ServerSide(server.model, server.tokenizer, server.suite, lambda state: told(1.0))
    assert PairStep(pair_steps=3).step(new, theta, 1, fair)[0] is new
    answers = iter([told(1.0, margins + 5), *[told(1.01)] * 4])  # the average, then four lengths: fair, but worse
    costly = ServerSide(server.model, server.tokenizer, server.suite, lambda state: next(answers))
    state, numbers = PairStep(pair_steps=3).step(new, theta, 1, costly)
    assert state is new
    assert (numbers["pair_steps"], numbers["pair_loss_after"]) == (0.0, 1.0)
