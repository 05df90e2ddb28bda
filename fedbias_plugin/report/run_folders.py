"""Which runs the folders given to ``fedbias compare`` mean, and what the tables call them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.tracking.jsonl import METRICS_FILE

logger = logging.getLogger(__name__)

HOST_FILE = "args.json"
"""OpenFedLLM writes it into the folder of a run, which it names itself, with sixty characters and the time."""


def find_runs(folders: Sequence[str | Path]) -> list[tuple[str, Path]]:
    """Name and folder of every run, in the order given.

    A folder that holds one run of OpenFedLLM stands for it. A run of OpenFedLLM that never got through round 0 is left
    out with a warning, where others remain. Runs are called by their folder's name; those of OpenFedLLM by the folder
    that the user named, above it.

    Raises:
        UserError: a folder is missing or holds no run.
    """
    found = [_run_in(Path(folder)) for folder in folders]
    stillborn = [path for path in found if not (path / METRICS_FILE).exists() and (path / HOST_FILE).is_file()]
    paths = [path for path in found if path not in stillborn]
    if not paths:
        paths, stillborn = found, []
    for path in stillborn:
        logger.warning("%s: holds no %s; it ended before round 0 was measured, and is left out.", path, METRICS_FILE)
    names = [_short_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [_long_name(path) for path in paths]
    return list(zip(names, paths, strict=True))


def _run_in(folder: Path) -> Path:
    """``folder``, or the one run of OpenFedLLM in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --output_dir of a run.")
    if (folder / METRICS_FILE).exists():
        return folder
    inside = sorted(path.parent for path in folder.glob(f"*/{METRICS_FILE}"))
    if len(inside) > 1:
        raise UserError(f"{folder}: holds {len(inside)} runs; name those you mean, or all: {folder}/*")
    return inside[0] if inside else folder


def _short_name(path: Path) -> str:
    return path.resolve().parts[-2 if (path / HOST_FILE).is_file() else -1]


def _long_name(path: Path) -> str:
    """With the folder above; of OpenFedLLM's own name the time is enough."""
    above, name = path.resolve().parts[-2:]
    stamp = re.search(r"_(\d{14})$", name) if (path / HOST_FILE).is_file() else None
    return f"{above}/{stamp.group(1) if stamp else name}"
