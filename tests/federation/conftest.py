"""The tokenizers, models and rows of the tests of training."""

from tests.training.conftest import _one_thread, make, tokenizers

__all__ = ["_one_thread", "make", "tokenizers"]
