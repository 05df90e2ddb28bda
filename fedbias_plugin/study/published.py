"""Numbers of a paper, which stand beside ours where a run is on its model (``configs/paper_results.yaml`` is one)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.flags import read_yaml


@dataclass(frozen=True)
class Published:
    """What a paper says; nothing where a study names no such file.

    Attributes:
        cells: (table, model, keys below it ..., key of a measure) -> the number.
        measures: key of a measure -> the column of ``Study.finals`` that it is to be compared with.
        models: key of a model -> pattern of the whole last part of its hub name or folder, in small letters and with
            ``-`` for ``_``. What others made of a model, instruction-tuned ones too, is another model.
        stated: flag -> its value in the paper, of the flags that it states.
        inconsistencies: table -> where its numbers and the text of the paper do not agree.
    """

    cells: Mapping[tuple[str, ...], float] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, str] = dataclasses.field(default_factory=dict)
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stated: Mapping[str, float] = dataclasses.field(default_factory=dict)
    inconsistencies: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def cell(self, table: str, model: str, path: Sequence[str], measure: str) -> float | None:
        """The paper's number of a cell; None where it is not known or the paper has no such model.

        Args:
            table: its key in the file.
            model: hub name, folder or id of the model.
            path: below the model, such as ``("fedavg", "3B")`` or ``("original",)``.
            measure: a column of ``Study.finals``, such as ``crows_pairs/delta``.
        """
        keys = (key for key, known in self.measures.items() if known == measure)
        found = (self.cells.get((table, self.model_of(model) or "", *path, key)) for key in keys)
        return next((number for number in found if number is not None), None)

    def model_of(self, name: str) -> str | None:
        """The paper's model that a hub name or folder is."""
        plain = name.rstrip("/").rpartition("/")[2].lower().replace("_", "-")
        return next((model for model, pattern in self.models.items() if re.fullmatch(pattern, plain)), None)


def load_published(path: Path) -> Published:
    """Read a file of published numbers.

    Raises:
        UserError: no such file, no YAML, a cell that is no number, or one whose measure or model the file does not
            explain.
    """
    content = read_yaml(str(path), "published results")
    for key in ("tables", "measures", "models"):
        if not isinstance(content.get(key), dict):
            raise UserError(f"{path}: {key} must be a mapping; found {quoted(content.get(key))}.")
    parts = {spec.name: content.get(spec.name) or {} for spec in dataclasses.fields(Published)}
    made = Published(**parts | {"cells": dict(_cells(content["tables"], (), str(path)))})
    for place in made.cells:
        for key, known in ((place[1], made.models), (place[-1], made.measures)):
            if key not in known:
                raise UserError(f"{path}, {', '.join(place)}: {quoted(key)} is explained nowhere in the file.")
    return made


def _cells(block: Mapping[str, Any], path: tuple[str, ...], file: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in block.items():
        place = (*path, str(key))
        if isinstance(value, dict):
            yield from _cells(value, place, file)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{file}, {', '.join(place)}: must be a number, found {quoted(value)}.")
        else:
            yield place, float(value)
