"""What a run has saved, found again: its adapter, and the base model that the adapter belongs to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.saving import ADAPTER_CONFIG, BASE
from fedbias_plugin.tracking.recorder import RUN_FILE


def find_adapter(folder: str) -> str:
    """The adapter that ``folder`` means: its own, or that of the run whose output folder it is.

    A folder that holds one run of a patched OpenFedLLM, which names its folders itself, stands for that run.

    Returns:
        The folder of the adapter; ``folder`` itself where there is none.

    Raises:
        UserError: it is a run that trained every weight, and has no adapter.
    """
    path = Path(folder)
    if (path / ADAPTER_CONFIG).is_file():
        return folder
    inside = [config.parent for config in sorted(path.glob(f"*/adapter/{ADAPTER_CONFIG}"))]
    for found in (path / "adapter", *(inside if len(inside) == 1 else ())):
        if (found / ADAPTER_CONFIG).is_file():
            return str(found)
    if (path / "model" / "config.json").is_file():
        raise UserError(
            f"--adapter {folder}: that run trained every weight and has no adapter; give --model_name_or_path "
            f"{path / 'model'}."
        )
    return folder


def base_model(adapter: str) -> tuple[str, Path]:
    """The base model of an adapter, and the file that names it: the run's ``run.json``, else its own configuration.

    A folder of another machine, of which there is none here, is no name.

    Raises:
        UserError: neither names one.
    """
    folder = Path(adapter)
    named = (
        (folder.absolute().parent / RUN_FILE, ("config", "model_name_or_path")),
        (folder / ADAPTER_CONFIG, (BASE,)),
    )
    for file, keys in named:
        name = _value(file, keys)
        if isinstance(name, str) and name and not (os.path.isabs(name) and not os.path.exists(name)):
            return name, file
    raise UserError(f"--adapter {adapter}: its files do not name its base model; give --model_name_or_path.")


def _value(file: Path, keys: tuple[str, ...]) -> Any:
    """What a JSON file holds under ``keys``; None where there is no such thing, or no such file."""
    try:
        value = json.loads(file.read_bytes())
        for key in keys:
            value = value[key]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None
    return value
