"""The Flower host where flwr is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedbias_plugin import UserError
from fedbias_plugin.hosts import flower


def test_a_missing_flwr_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name == "flwr" or name.startswith("flwr.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fedbias_plugin.hosts.flower.strategy", raising=False)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(UserError, match=r"BamaStrategy needs flwr .*pip install 'fedbias_plugin\[flower\]'"):
        _ = flower.BamaStrategy
    with pytest.raises(AttributeError, match="no attribute 'BamaStrateg'"):
        _ = flower.BamaStrateg


def test_another_missing_package_is_not_blamed_on_flwr(monkeypatch):
    monkeypatch.delitem(sys.modules, "fedbias_plugin.hosts.flower.strategy", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="torch"):
        _ = flower.BamaStrategy


def test_importing_the_host_loads_neither_flwr_nor_torch():
    code = "import sys, fedbias_plugin.hosts.flower; print({'flwr', 'torch', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
