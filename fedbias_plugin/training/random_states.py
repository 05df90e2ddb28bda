"""The global random states, to be put back after a block or in another process."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """Put Python's, NumPy's and torch's global random states back as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def random_states() -> dict[str, Any]:
    """Python's, NumPy's and torch's (of the CPU and every GPU) global random states, JSON-ready."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, _hex(np.array(numbers, dtype=np.uint32)), gauss],
        "numpy": [kind, _hex(np.asarray(keys)), int(position), int(has_gauss), float(cached)],
        "torch": _hex(torch.get_rng_state().numpy()),
        "cuda": [_hex(state.numpy()) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put back what :func:`random_states` gave; GPUs that this machine does not have are left out."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(int(number) for number in _array(numbers, np.uint32)), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, _array(keys, np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.from_numpy(_array(states["torch"], np.uint8)))
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(torch.from_numpy(_array(state, np.uint8)), device)


def _hex(array: np.ndarray[Any, Any]) -> str:
    return array.tobytes().hex()


def _array(text: str, dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    return np.frombuffer(bytes.fromhex(text), dtype=dtype).copy()
