"""Free memory: the machine's, or less where a container has a limit."""

import gc

import psutil
import pytest
import torch

from fedbias_plugin import memory


def test_the_machines_memory_counts_where_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    free = psutil.virtual_memory().available
    assert 0.5 * free < memory.free_memory_bytes() < 2 * free
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.free_memory_bytes(torch.device("cpu")) > 0.5 * free


def test_a_containers_limit_counts_where_it_is_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("20000\n")
    (tmp_path / "memory.stat").write_text("anon 15000\ninactive_file 4000\n")
    assert memory.free_memory_bytes() == 34000
    (tmp_path / "memory.current").write_text("60000\n")
    assert memory.free_memory_bytes() == 0


def test_of_other_devices_nothing_is_known():
    assert memory.free_memory_bytes(torch.device("meta")) == 0


def test_the_peak_is_at_least_what_is_held():
    held = bytearray(50_000_000)
    assert memory.peak_memory_bytes() > len(held)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_left_as_it_was(is_on):
    (gc.enable if is_on else gc.disable)()
    try:
        with memory.collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is is_on
    finally:
        gc.enable()
