"""``configs/paper_results.yaml``: the paper's own numbers, which stand beside ours where a run is on its model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.configs_folder import configs_folder
from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.flags import read_yaml

FILE = "paper_results.yaml"
MEASURES = {"crows_pairs/delta": "delta_crows", "stereoset/delta": "delta_ss"}
STATED = {"num_rounds": "rounds", "local_epochs": "local_epochs", "prox_mu": "fedprox_mu"}
"""Of a study -> of the file."""
_MODEL_PATTERNS = {
    "llama3_8b": r"(meta-)?llama-?3-8b(-hf)?",
    "mistral_7b": r"mistral-7b(-v0\.\d)?",
    "phi3_mini": r"phi-?3-mini(-(4k|128k))?(-instruct)?",
    "gemma2_2b": r"gemma-?2-2b",
    "gemma2_9b": r"gemma-?2-9b",
}
"""Whole names: what others made of these models, instruction-tuned ones too, is another model."""


@dataclass(frozen=True)
class Paper:
    """What the paper says.

    Attributes:
        inconsistencies: table -> where its numbers and the text of the paper do not agree.
        cells: (table, model, keys below it ..., measure) -> percentage points.
        stated: flag -> its value in the paper, of the flags that it states.
    """

    cells: Mapping[tuple[str, ...], float]
    inconsistencies: Mapping[str, Sequence[str]]
    stated: Mapping[str, float]

    def cell(self, table: str, model: str, path: Sequence[str], measure: str) -> float | None:
        """The paper's number of a cell; None where it is not known or the paper has no such model.

        Args:
            table: ``table1`` to ``table3``, or ``participation``.
            model: hub name, folder or id of the model.
            path: below the model, such as ``("fedavg", "3B")`` or ``("original",)``.
            measure: a column of ``Study.finals``, such as ``crows_pairs/delta``.
        """
        return self.cells.get((table, paper_model(model) or "", *path, MEASURES.get(measure, "")))


def paper_model(name: str) -> str | None:
    """The paper's model that a hub name or folder is.

    >>> paper_model("meta-llama/Meta-Llama-3-8B"), paper_model("models/gemma2_2b"), paper_model("google/gemma-2-2b-it")
    ('llama3_8b', 'gemma2_2b', None)
    """
    plain = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-")
    return next((model for model, pattern in _MODEL_PATTERNS.items() if re.fullmatch(pattern, plain)), None)


def load_paper(path: Path | None = None) -> Paper:
    """Read the facts file (default: the plugin's own).

    Raises:
        UserError: no such file, no YAML, or a cell that is no number between 0 and 50.
    """
    file = path or configs_folder() / FILE
    content = read_yaml(str(file), "paper")
    tables = content.get("tables")
    if not isinstance(tables, dict):
        raise UserError(f"{file}: tables must be a mapping of tables; found {quoted(tables)}.")
    settings = content.get("settings") or {}
    stated = {flag: settings[name] for flag, name in STATED.items() if name in settings}
    return Paper(dict(_cells(tables, (), str(file))), content.get("inconsistencies") or {}, stated)


def _cells(block: Mapping[str, Any], path: tuple[str, ...], file: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in block.items():
        place = (*path, str(key))
        if isinstance(value, dict):
            yield from _cells(value, place, file)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 50:
            where = ", ".join(place)
            raise UserError(f"{file}, {where}: |score - 50| is a number between 0 and 50, found {quoted(value)}.")
        else:
            yield place, float(value)
