"""What a client sends of its update, by hand; and that nothing is lost."""

import math

import pytest
import torch

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.federation.run_description import HostRun
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.pipeline import Pipeline
from fedbias_plugin.updates.psm import RESIDUAL, Psm, parted, payload, selected, unit_scores, units_of

SCORES = [0.5, 0.3, 0.1, 0.06, 0.04]
PROMPT = {"prompt_embeddings": torch.zeros(20, 768)}


def updated(theta, number=0):
    """An update of random size in every row."""
    draws = torch.Generator().manual_seed(number)
    state = {
        name: part + torch.randn(part.shape, generator=draws) * torch.rand(len(part), 1, generator=draws)
        for name, part in theta.items()
    }
    return Update(0, state, rows=10)


def test_the_fewest_units_that_reach_the_share_are_sent_but_no_more_than_are_allowed():
    assert selected(SCORES, 0.85, 1.0) == [0, 1, 2]
    assert selected(SCORES, 0.85, 0.4) == [0, 1]
    assert selected(list(reversed(SCORES)), 0.85, 1.0) == [4, 3, 2]
    assert selected(SCORES, 1.0, 1.0) == [0, 1, 2, 3, 4]
    assert selected(SCORES, 0.01, 0.01) == [0]  # at least one: ceil
    assert len(selected([1.0] * 30, 1.0, 0.1)) == 3  # 0.1 x 30 is a little more than 3 to a computer
    assert selected([0.0, 0.0], 0.9, 1.0) == []  # who has not moved sends nothing
    assert selected([1.0, 1.0, 1.0], 0.5, 1.0) == [0, 1]


def test_a_sum_that_misses_the_share_by_rounding_reaches_it():
    scores = [0.7, 0.1, 0.1, 0.1]
    assert 0.8 * math.fsum(scores) > 0.7 + 0.1  # to a computer
    assert selected(scores, 0.8, 1.0) == [0, 1]


def test_units_are_rows_of_a_prompt_pairs_of_lora_and_else_tensors():
    pair = {f"layers.{layer}.q.lora_{part}.weight": torch.zeros(2, 2) for layer in (0, 1) for part in "AB"}
    assert units_of({**PROMPT, **pair}, "auto") == {
        "prompt_embeddings": list(range(20)),
        **dict(zip(pair, [[20], [20], [21], [21]], strict=True)),
    }
    assert list(units_of(pair, "tensor").values()) == [[0], [1], [2], [3]]
    assert list(units_of(pair, "row").values())[1] == [2, 3]
    embedded = {"e.lora_embedding_A": torch.zeros(2, 2), "e.lora_embedding_B": torch.zeros(2, 2), "s": torch.zeros(())}
    assert list(units_of(embedded, "auto").values()) == [[0], [0], [1]]
    deltas = {"q.lora_A.weight": torch.tensor([[3.0]]), "q.lora_B.weight": torch.tensor([[4.0]])}
    assert unit_scores(deltas, units_of(deltas, "auto")) == [5.0]


def test_twenty_rows_of_768_floats_cost_61440_bytes_and_five_of_them_15360_and_a_bitmap_of_3():
    units = units_of(PROMPT, "auto")
    assert payload(PROMPT, units, range(5)) == {"prompt rows": 15_360, "bitmap": 3}
    assert payload(PROMPT, units, range(20))["prompt rows"] == 61_440
    lora = {
        "q.lora_A.weight": torch.zeros(8, 16),
        "q.lora_B.weight": torch.zeros(16, 8),
        "k.lora_A.weight": torch.zeros(1),
    }
    assert payload(lora, units_of(lora, "auto"), [0]) == {"parts": 1024, "bitmap": 1}


def test_what_is_sent_and_what_is_left_are_the_update_exactly():
    update = updated(PROMPT)
    delta, units = update.state, units_of(PROMPT, "auto")
    sent, rest = parted(delta, units, [3, 7])
    assert torch.equal(sent["prompt_embeddings"] + rest["prompt_embeddings"], delta["prompt_embeddings"])
    assert sent["prompt_embeddings"].any(1).nonzero().flatten().tolist() == [3, 7]
    assert not rest["prompt_embeddings"][[3, 7]].any()


def test_over_rounds_all_that_was_learned_arrives_or_waits():
    theta = {"prompt_embeddings": torch.zeros(20, 4)}  # from zero, so that no bit is lost to theta
    stage, kept, learned, arrived = Psm(psm_tau=0.5), {}, torch.zeros(20, 4), torch.zeros(20, 4)
    for number in range(4):
        update = updated(theta, number)
        learned += update.state["prompt_embeddings"]
        update.kept = kept
        found = stage.at_client(update, theta, number + 1, 1)
        assert found.extra["psm_units"] < 10
        assert found.extra["psm_share"] >= 0.5
        assert found.payload == {"prompt rows": found.extra["psm_units"] * 16, "bitmap": 3}
        arrived += found.state["prompt_embeddings"]
        kept = update.keeps
        torch.testing.assert_close(arrived + kept[RESIDUAL]["prompt_embeddings"], learned, atol=1e-6, rtol=0)
    lossy = Psm(psm_tau=0.5, psm_residual=False)
    update = updated(theta)
    assert (lossy.at_client(update, theta, 1, 1).keeps, lossy.keeps, stage.keeps) == ({}, (), (RESIDUAL,))


def test_what_was_not_sent_is_read_as_zero_and_with_tau_and_rho_1_the_state_is_that_which_was_trained():
    theta = {"prompt_embeddings": torch.randn(20, 4, generator=torch.Generator().manual_seed(9))}
    update = updated(theta)
    found = Psm(psm_rho=0.1, psm_tau=1.0).at_client(update, theta, 1, 1)
    moved = (found.state["prompt_embeddings"] != theta["prompt_embeddings"]).any(1)
    sizes = (update.state["prompt_embeddings"] - theta["prompt_embeddings"]).norm(dim=1)
    assert moved.nonzero().flatten().tolist() == sorted(sizes.topk(2).indices.tolist())
    update = updated(theta)
    update.kept = {RESIDUAL: {"prompt_embeddings": torch.zeros(20, 4)}}
    whole = Psm(psm_rho=1.0, psm_tau=1.0).at_client(update, theta, 1, 1)
    assert whole.state is update.state
    assert not whole.keeps[RESIDUAL]["prompt_embeddings"].any()


def test_an_update_that_fits_nothing_or_is_not_finite_is_left_for_the_checks():
    theta = {"prompt_embeddings": torch.zeros(2, 2)}
    strange = Update(0, {"other": torch.zeros(1)}, rows=1)
    assert Psm().at_client(strange, theta, 1, 1) is strange
    broken = Update(0, {"prompt_embeddings": torch.full((2, 2), math.nan)}, rows=1)
    assert Psm().at_client(broken, theta, 1, 1).state is broken.state


@pytest.mark.parametrize(
    ("flags", "is_there"),
    [
        ({"aggregation": "fedpsf"}, True),
        ({"aggregation": "fedpsf", "fedpsf_modules": "dwm,abm"}, False),
        ({"aggregation": "plain"}, False),
    ],
)
def test_the_stage_is_there_with_fedpsf_and_its_module_alone(flags, is_there, tmp_path):
    pipeline = Pipeline(BiasArguments(**flags), HostRun(tmp_path, "fedavg", 3, 3, 1, 0), {})
    assert pipeline.keeps == ((RESIDUAL,) if is_there else ())
