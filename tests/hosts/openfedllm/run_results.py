"""What the folder of a patched run, or of a checkout, holds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digests(folder: Path) -> dict[str, str]:
    """File -> SHA-256 of everything in a checkout, what Python and runs left behind aside."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records(folder: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` says, seconds and memory aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "peak_memory_bytes")} for line in lines]


def adapter(folder: Path) -> dict[str, Any]:
    """The final global adapter."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter/adapter_model.safetensors")
