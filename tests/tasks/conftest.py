"""The tokenizers and rows of the training tests."""

from tests.training.conftest import _one_thread, make, tokenizers

__all__ = ["_one_thread", "make", "tokenizers"]
