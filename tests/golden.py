"""Where the numbers and the interface recorded from OpenFedLLM lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def golden_file(name: str) -> Path:
    """The recorded file ``name`` in $FEDBIAS_GOLDEN or in ``golden`` beside $FEDBIAS_DATA; skips where it is absent."""
    path = None
    if "FEDBIAS_GOLDEN" in os.environ:
        path = Path(os.environ["FEDBIAS_GOLDEN"])
        path = path / name if path.is_dir() else path.with_name(name)
    elif "FEDBIAS_DATA" in os.environ:
        path = Path(os.environ["FEDBIAS_DATA"]).parent / "golden" / name
    if path is None or not path.is_file():
        pytest.skip(f"what was recorded of OpenFedLLM ({name}) is not here; set FEDBIAS_GOLDEN to its folder")
    return path
