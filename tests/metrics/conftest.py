"""The tokenizers and models of the scorer's tests."""

from tests.scoring.conftest import bos_tokenizer, build_model, eos_tokenizer

__all__ = ["bos_tokenizer", "build_model", "eos_tokenizer"]
