"""``configs/paper_results.yaml``: the paper's own numbers, each null until somebody has read it in the paper."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.configs_folder import configs_folder
from fedbias_plugin.errors import UserError, did_you_mean, first_line, quoted

FILE = "paper_results.yaml"
MODELS = ("llama3_8b", "mistral_7b", "phi3_mini", "gemma2_2b", "gemma2_9b")
CLAIMS = ("fedadam_lowest", "third_biased_matters", "mixed_higher", "bama_reduces")
SOURCE = ("title", "authors", "venue", "doi", "status")
MEASURES = ("delta_crows", "delta_ss")
ALGORITHMS = ("fedavg", "fedadam", "fedprox")
ORIGINAL = ("original",)

_SCENARIOS = ("3B", "3C", "1B2C", "2B1C")
_TABLES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "table1": (ORIGINAL, *((name, scenario) for name in ALGORITHMS for scenario in _SCENARIOS)),
    "table2": (
        *(("centralised_full",), ("centralised_lora",)),
        *(("fedadam", scenario) for scenario in ("3B", "3C", "mix-1B2C", "mix-2B1C")),
    ),
    "table3": tuple((name, arm) for name in ALGORITHMS for arm in ("without_bama", "with_bama")),
}
"""Table -> the paths of its cells below a model."""
_MODEL_PATTERNS = {
    "llama3_8b": r"llama-?3-8b",
    "mistral_7b": r"mistral-7b",
    "phi3_mini": r"phi-?3-mini",
    "gemma2_2b": r"gemma-?2-2b",
    "gemma2_9b": r"gemma-?2-9b",
}

CellPath = tuple[str, ...]


@dataclass(frozen=True)
class Paper:
    """What the paper says.

    Attributes:
        source: title, authors, venue, doi, and what of it we could read.
        claims: id -> the claim in our words.
        cells: (table, model, path, measure) -> percentage points; cells that are null are absent.
    """

    source: Mapping[str, str]
    claims: Mapping[str, str]
    cells: Mapping[tuple[str, str, CellPath, str], float]

    def cell(self, table: str, model: str, path: CellPath, measure: str) -> float | None:
        """The paper's number of a cell; None where it is not known or the paper has no such model.

        Args:
            table: ``table1`` to ``table3``.
            model: hub name, folder or id of the model.
            path: below the model, such as ``("fedavg", "3B")`` or ``("original",)``.
            measure: ``delta_crows`` or ``delta_ss``.
        """
        known = paper_model(model)
        return None if known is None else self.cells.get((table, known, path, measure))


def paper_note(paper: Paper) -> str:
    """What a report has to say where the paper's numbers are not shown; '' where some are known."""
    if paper.cells:
        return ""
    return (
        "The paper's own numbers are not shown: the cells of its Tables 1 to 3 could not be read by us and are null in "
        f"configs/{FILE}. Fill them in from the paper, and they stand beside ours with whether the direction agrees."
    )


def paper_model(name: str) -> str | None:
    """The paper's model that a hub name or folder is.

    >>> paper_model("meta-llama/Meta-Llama-3-8B"), paper_model("gemma-2-2b-it"), paper_model("tiny")
    ('llama3_8b', 'gemma2_2b', None)
    """
    plain = name.lower().replace("_", "-")
    return next((model for model, pattern in _MODEL_PATTERNS.items() if re.search(pattern, plain)), None)


def load_paper(path: Path | None = None) -> Paper:
    """Read the facts file (default: the plugin's own).

    Raises:
        UserError: no such file, not YAML, an unknown or missing key, or a cell that is neither a number nor null.
    """
    import yaml

    file = path or configs_folder() / FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as YAML ({first_line(error)}).") from None
    top = _keys(content, ("source", "claims", "tables"), f"{file}")
    source = _texts(top["source"], SOURCE, f"{file}, source")
    claims = _texts(top["claims"], CLAIMS, f"{file}, claims")
    tables = _keys(top["tables"], _TABLES, f"{file}, tables")
    cells: dict[tuple[str, str, CellPath, str], float] = {}
    for table, paths in _TABLES.items():
        for model, block in _keys(tables[table], MODELS, f"{file}, {table}").items():
            for below, measure, value in _cells(block, paths, f"{file}, {table}, {model}"):
                cells[table, model, below, measure] = value
    return Paper(source, claims, cells)


def _cells(block: Any, paths: Sequence[CellPath], where: str) -> Iterable[tuple[CellPath, str, float]]:
    """The known numbers of one model in one table, its keys checked against ``paths``."""
    for head, value in _keys(block, dict.fromkeys(path[0] for path in paths), where).items():
        below = [path[1] for path in paths if path[0] == head and len(path) == 2]
        inner = _keys(value, below, f"{where}, {head}") if below else {"": value}
        for name, cell in inner.items():
            path = (head, name) if name else (head,)
            found = f"{where}, {', '.join(path)}"
            for measure, points in _keys(cell, MEASURES, found).items():
                if points is not None:
                    yield path, measure, _delta(points, f"{found}, {measure}")


def _delta(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: must be a number of percentage points or null, found {quoted(value)}.")
    if not 0 <= value <= 50:
        raise UserError(f"{where}: |score - 50| lies between 0 and 50, found {value}.")
    return float(value)


def _texts(block: Any, names: Sequence[str], where: str) -> dict[str, str]:
    for name, value in _keys(block, names, where).items():
        if not isinstance(value, str):
            raise UserError(f"{where}, {name}: must be a text, found {quoted(value)}.")
    return dict(block)


def _keys(block: Any, names: Iterable[str], where: str) -> dict[str, Any]:
    """``block`` as a mapping that has exactly ``names``."""
    known = list(names)
    if not isinstance(block, dict):
        raise UserError(f"{where}: must be a mapping with {', '.join(known)}; found {quoted(block)}.")
    for name in block:
        if name not in known:
            raise UserError(f"{where}: {quoted(name)} is unknown.{did_you_mean(name, known)}")
    for name in known:
        if name not in block:
            raise UserError(f"{where}: {name} is missing; a number that is not known is written as null.")
    return block
