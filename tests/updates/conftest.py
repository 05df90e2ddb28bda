"""Models for stages that have one, as those of the scoring tests."""

from __future__ import annotations

from tests.scoring.conftest import bos_tokenizer, build_model

__all__ = ["bos_tokenizer", "build_model"]
