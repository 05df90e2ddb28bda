"""What the server refuses before it uses an update."""

import pytest
import torch

from fedbias_plugin.aggregation import pieces as pieces_module
from fedbias_plugin.updates.base import Update
from fedbias_plugin.updates.checks import Checks, update_norm

THETA = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}


def check_update(theta, state, *, train_loss=None, max_norm=None):
    """An update as the server has checked it."""
    updates = {3: Update(3, state, rows=10, loss=train_loss)}
    Checks(max_norm).at_server(updates, theta, number=1)
    return updates[3]


def local(**changes):
    return {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[4.0]]), **changes}


def test_a_good_update_has_its_norm_and_no_fault():
    # differences 2, 0, 4 -> sqrt(20)
    checked = check_update(THETA, local(), train_loss=0.7, max_norm=4.5)
    assert checked.norm == pytest.approx(20**0.5)
    assert checked.fault is None
    assert update_norm(THETA, local()) == checked.norm


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        ({"b": torch.zeros(1, 1)}, "1 tensor missing, the first 'a'"),
        ({}, "2 tensors missing, the first 'a'"),
        (local(z=torch.zeros(1), y=torch.zeros(1)), "2 tensors that the global model does not have, the first 'z'"),
        (local(b=torch.zeros(1)), "'b' has shape (1,), not (1, 1)"),
        (local(a=torch.zeros(2, dtype=torch.float16)), "'a' has dtype float16, not float32"),
        (local(b=torch.tensor([[float("nan")]])), "1 entry is NaN or infinite, the first in 'b'"),
        (
            local(a=torch.tensor([float("inf"), float("-inf")]), b=torch.tensor([[float("nan")]])),
            "3 entries are NaN or infinite, the first in 'a'",
        ),
    ],
)
def test_a_state_that_cannot_be_used_has_no_norm_and_a_fault_that_names_the_tensor(received, fault):
    checked = check_update(THETA, received)
    assert (checked.norm, checked.fault) == (None, fault)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_training_loss_that_is_not_finite_is_a_fault(loss):
    assert check_update(THETA, local(), train_loss=loss).fault == f"training loss {loss}"


def test_a_long_update_is_a_fault_with_both_numbers():
    checked = check_update(THETA, local(), max_norm=4)
    assert checked.fault == "update norm 4.47214, larger than --max_update_norm 4"
    assert checked.norm == pytest.approx(20**0.5)


def test_finite_numbers_whose_difference_overflows_are_a_fault_too():
    far = {"a": torch.tensor([3e38])}
    assert check_update(far, {"a": torch.tensor([-3e38])}).fault == "update norm inf"


def test_entries_are_found_and_counted_across_pieces(monkeypatch):
    monkeypatch.setattr(pieces_module, "PIECE", 4)
    theta = {"a": torch.zeros(3, 5)}
    bad = torch.ones(5, 3).t()
    bad[0, 0] = bad[2, 4] = float("nan")
    assert check_update(theta, {"a": bad}).fault == "2 entries are NaN or infinite, the first in 'a'"
    assert check_update(theta, {"a": torch.ones(5, 3).t()}).norm == pytest.approx(15**0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_norm_of_other_dtypes(dtype):
    theta = {"a": torch.zeros(10_000, dtype=dtype)}
    assert check_update(theta, {"a": torch.full((10_000,), 300.0, dtype=dtype)}).norm == pytest.approx(30_000)
