"""The tokenizers and models of the scorer's tests, and files of the public data sets where this machine has them."""

import os
from pathlib import Path

import pytest

from tests.scoring.conftest import bos_tokenizer, build_model, eos_tokenizer

__all__ = ["bos_tokenizer", "build_model", "eos_tokenizer"]


def public_file(name: str) -> Path:
    """A file below FEDBIAS_DATA; the test is skipped where it is not there."""
    path = Path(os.environ.get("FEDBIAS_DATA", "")) / name
    if not os.environ.get("FEDBIAS_DATA") or not path.is_file():
        pytest.skip(f"FEDBIAS_DATA does not hold {name}")
    return path
