"""One state for every client, so that any average returns it."""

import pytest
import torch

from fedbias_plugin.aggregation.substitution import substitute, weighted_state

THETA = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}
LOCALS = {
    0: {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[4.0]])},
    2: {"a": torch.tensor([1.0, 6.0]), "b": torch.tensor([[-4.0]])},
}


def test_the_weighted_state_by_hand():
    # a: [1, 2] + 0.5 * [2, 0] + 0.25 * [0, 4] = [2, 3];  b: 0 + 0.5 * 4 - 0.25 * 4 = 1
    state = weighted_state(THETA, LOCALS, {0: 0.5, 2: 0.25})
    assert state["a"].tolist() == [2.0, 3.0]
    assert state["b"].tolist() == [[1.0]]


def test_inputs_are_not_modified_and_one_state_is_shared():
    before = THETA["a"].clone()
    states = substitute(THETA, LOCALS, {0: 0.5, 2: 0.5})
    assert torch.equal(THETA["a"], before)
    assert list(states) == [0, 2]
    assert states[0] is states[2]


def test_bfloat16_is_summed_in_float32():
    theta = {"a": torch.ones(1, dtype=torch.bfloat16)}
    locals_ = {i: {"a": torch.full((1,), 1.0078125, dtype=torch.bfloat16)} for i in range(4)}
    # every update is one bfloat16 step; a quarter of it is lost if each addition is rounded
    state = weighted_state(theta, locals_, dict.fromkeys(locals_, 0.25))
    assert state["a"].dtype is torch.bfloat16
    assert float(state["a"]) == 1.0078125


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"a": torch.zeros(2)}, "client 2 cannot be aggregated: b is missing"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, r"b has shape \(3,\), not \(1, 1\)"),
    ],
)
def test_a_broken_update_is_named_by_client_and_tensor(broken, message):
    with pytest.raises(ValueError, match=message):
        weighted_state(THETA, {0: LOCALS[0], 2: broken}, {0: 0.5, 2: 0.5})


def test_a_client_with_factor_zero_is_left_out_whatever_it_holds():
    broken = {name: torch.full_like(tensor, float("nan")) for name, tensor in THETA.items()}
    state = weighted_state(THETA, {0: LOCALS[0], 2: broken}, {0: 0.5, 2: 0.0})
    assert state["a"].tolist() == [2.0, 2.0]
