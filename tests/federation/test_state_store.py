"""States in files mapped into memory, and when they go there."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.federation import state_store
from fedbias_plugin.federation.state_store import StateStore, choose_store, state_bytes

MAPS = Path("/proc/self/maps")


def some_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "z.weight": torch.randn(3, 5),
        "a.scale": torch.tensor(1.5),
        "half": torch.tensor([1.0, -0.0, float("nan"), float("inf")], dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
    }


def assert_same_bytes(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert (
            found[name].contiguous().flatten().view(torch.uint8).equal(tensor.contiguous().flatten().view(torch.uint8))
        )


def test_in_memory_the_state_itself_is_kept():
    state, store = some_state(), StateStore()
    assert store.keep("client-0", state) is state
    store.drop("client-0")
    store.close()


def test_on_disk_names_order_dtypes_shapes_and_bytes_stay(tmp_path):
    state, store = some_state(), StateStore(tmp_path / "run/states")
    assert_same_bytes(store.keep("client-0", state), state)
    assert [path.name for path in (tmp_path / "run/states").iterdir()] == ["client-0.safetensors"]


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped where")
def test_a_kept_state_is_mapped_from_its_file(tmp_path):
    kept = StateStore(tmp_path / "states").keep("client-0", {"w": torch.ones(1000)})
    maps = [line for line in MAPS.read_text().splitlines() if "client-0.safetensors" in line]
    starts_and_ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert any(start <= kept["w"].data_ptr() < end for start, end in starts_and_ends)


def test_writing_to_a_kept_state_does_not_reach_the_file_or_the_original(tmp_path):
    state, store = {"w": torch.ones(4)}, StateStore(tmp_path / "states")
    file = tmp_path / "states/client-0.safetensors"
    kept = store.keep("client-0", state)
    before = file.read_bytes()
    kept["w"].zero_()
    assert state["w"].equal(torch.ones(4))
    assert file.read_bytes() == before


def test_tensors_that_share_memory_or_are_not_contiguous_are_kept(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {"whole": base, "tied": base, "row": base[1], "turned": base.T, "strided": torch.arange(10.0)[::3]}
    kept = StateStore(tmp_path / "states").keep("client-0", state)
    assert_same_bytes(kept, state)
    kept["tied"].zero_()
    assert kept["whole"].equal(base)


def test_a_mapped_state_outlives_its_file_being_replaced_dropped_and_closed(tmp_path):
    store = StateStore(tmp_path / "states")
    first = store.keep("control", {"w": torch.full((5000,), 1.0)})
    second = store.keep("control", {"w": torch.full((9000,), 2.0)})
    store.drop("control")
    store.drop("control")
    assert list((tmp_path / "states").iterdir()) == []
    third = store.keep("control", {"w": torch.full((5,), 3.0)})
    store.close()
    store.close()
    assert not (tmp_path / "states").exists()
    for number, kept in enumerate((first, second, third), start=1):
        assert kept["w"].unique().tolist() == [number]


def test_a_folder_that_cannot_be_made_is_named_with_the_flag(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/states: a client's state of 0\.00 GB .*--local_states memory"):
        StateStore(tmp_path / "file/states").keep("client-0", {"w": torch.ones(4)})


def test_a_full_disk_is_named_with_the_flag_and_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    def fill_up(state, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_store, "write_state_file", fill_up)
    with pytest.raises(UserError, match=r"No space left on device.*--local_states memory"):
        StateStore(tmp_path / "states").keep("client-0", {"w": torch.ones(4)})
    assert list((tmp_path / "states").iterdir()) == []


@pytest.mark.parametrize(("free", "on_disk"), [(200, False), (199, True), (0, True)])
def test_auto_takes_the_disk_above_half_of_the_free_memory_and_says_so(tmp_path, monkeypatch, caplog, free, on_disk):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with caplog.at_level(logging.INFO, "fedbias_plugin"):
        store = choose_store("auto", tmp_path / "states", waiting_bytes=100)
    assert store.folder == (tmp_path / "states" if on_disk else None)
    assert [str(tmp_path / "states") in record.message for record in caplog.records] == [True] * on_disk
    assert not (tmp_path / "states").exists()


def test_memory_and_disk_are_what_was_asked_for_however_much_is_free(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "fedbias_plugin"):
        assert choose_store("memory", tmp_path, waiting_bytes=2**60).folder is None
        assert choose_store("disk", tmp_path, waiting_bytes=1).folder == tmp_path
    assert caplog.records == []


def test_bytes_of_a_state_are_those_of_its_entries():
    assert state_bytes(some_state()) == 15 * 4 + 4 + 4 * 2
