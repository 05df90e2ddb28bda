"""--deterministic."""

from __future__ import annotations

import os

import pytest
import torch

from fedbias_plugin.training.determinism import make_deterministic


@pytest.fixture
def settings_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    sdp = torch.backends.cuda
    before = sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    sdp.enable_flash_sdp(before[0]), sdp.enable_mem_efficient_sdp(before[1])
    torch.backends.cudnn.benchmark = before[2]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_only_deterministic_kernels_are_left_and_a_missing_one_is_a_warning(settings_put_back):
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.mem_efficient_sdp_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
