"""What ``configs/experiments/*.yaml`` and ``configs/models/*.yaml`` say, checked name by name."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError, did_you_mean, quoted
from fedbias_plugin.flags import field_types, read_yaml, unknown_name
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments

CENTRALISED = "centralised"
"""An axis of a grid beside the flags: true trains the rows of all clients in one place."""
OWN = {"seed": "give seeds", "output_dir": "give --output on the command line"}
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
FLAGS = {**field_types(HostArguments), **field_types(BiasArguments)}


@dataclass(frozen=True)
class Experiment:
    """One table or figure: runs with the flags ``arguments``, each with every seed.

    ``grid`` says what varies: each is a mapping of a flag to the values it takes; all combinations within one are run.
    ``extends`` names a file beside its own, whose seeds, grid and arguments it has where it gives none.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    grid: tuple[Mapping[str, tuple[Any, ...]], ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    extends: str = ""


@dataclass(frozen=True)
class ModelConfig:
    """A model, how it is loaded and how it is trained.

    Where every weight is trained, the flags ``full_finetuning`` win over ``arguments``. ``memory_gib`` estimates what a
    run takes of one GPU: ``train`` with adapters, ``full_finetuning`` with every weight.
    """

    name: str
    title: str
    arguments: Mapping[str, Any]
    full_finetuning: Mapping[str, Any] = field(default_factory=dict)
    parameters: int | None = None
    memory_gib: Mapping[str, float] = field(default_factory=dict)


def load_experiment(path: Path) -> Experiment:
    """Read one file of ``configs/experiments``.

    Raises:
        UserError: it cannot be read, or a name or a value in it is not what it should be; both are named.
    """
    content = _read(Experiment, path, "experiment", "arguments")
    if "extends" in content:
        content = _extended(content, path)
    given = content.get("grid")
    grids = given if isinstance(given, list) else [given]
    content["grid"] = tuple(_grid(grid, f"experiment {path}") for grid in grids)
    content["seeds"] = check_seeds(content.get("seeds"), f"experiment {path}")
    return Experiment(**content)


def _extended(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``content`` of the experiment at ``path`` on what it extends."""
    where, base = f"experiment {path}", path.parent / f"{content['extends']}.yaml"
    if not base.is_file():
        ours = sorted(one.stem for one in path.parent.glob("*.yaml"))
        hint = did_you_mean(str(content["extends"]), ours)
        raise UserError(f"{where}: extends {quoted(content['extends'])}, and there is no {base}.{hint}")
    below = _read(Experiment, base, "experiment", "arguments")
    if "extends" in below:
        raise UserError(f"{where}: extends {quoted(content['extends'])}, which extends another; name that one.")
    return {**below, **content, "arguments": {**below["arguments"], **content["arguments"]}}


def load_model(path: Path) -> ModelConfig:
    """Read one file of ``configs/models``.

    Raises:
        UserError: as :func:`load_experiment`.
    """
    content = _read(ModelConfig, path, "model", "arguments", "full_finetuning")
    memory = content.get("memory_gib", {})
    if not isinstance(memory, dict) or any(type(value) not in (int, float) for value in memory.values()):
        raise UserError(f"model {path}: memory_gib must be numbers by name, such as {{train: 14.0}}.")
    return ModelConfig(**content)


def check_seeds(seeds: Any, where: str) -> tuple[int, ...]:
    """``seeds`` as a tuple of different whole numbers from 0.

    Raises:
        UserError: they are something else.
    """
    good = isinstance(seeds, Sequence) and not isinstance(seeds, str) and len(seeds) > 0
    if not good or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise UserError(f"{where}: seeds must be whole numbers from 0, such as [2023, 2024, 2025].")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{where}: a seed stands twice in {quoted(list(seeds))}.")
    return tuple(seeds)


def check_flag(name: str, where: str) -> None:
    """Refuse a name that is no flag of ``fedbias run``, or one that a sweep sets itself.

    Raises:
        UserError: with what was probably meant.
    """
    if name in OWN:
        raise UserError(f"{where}: {name} is set by the sweep; {OWN[name]}.")
    if name not in FLAGS:
        raise unknown_name(name, list(FLAGS), NOT_HERE, where)


def _read(cls: type, path: Path, kind: str, *of_flags: str) -> dict[str, Any]:
    """The file's content: names are fields of ``cls``, the parts ``of_flags`` hold flags, name and title are there."""
    content = read_yaml(str(path), kind)
    known = [spec.name for spec in dataclasses.fields(cls)]
    for name in content:
        if name not in known:
            raise UserError(
                f"{kind} {path}: unknown name {quoted(name)}; known are {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if "name" not in content:
        raise UserError(f"{kind} {path}: name is missing; add a line such as `name: mine`.")
    name = content["name"]
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(
            f"{kind} {path}: name must be lower-case letters, digits, _ and -, such as table1; found {quoted(name)}."
        )
    for part in of_flags:
        where, flags = f"{kind} {path}, {part}", content.setdefault(part, {})
        if not isinstance(flags, dict):
            raise UserError(f"{where} must hold one flag a line, such as `num_rounds: 5`; found {quoted(flags)}.")
        for flag, value in flags.items():
            check_flag(flag, where)
            if isinstance(value, list | dict):
                raise UserError(f"{where}: {flag} takes one value; what is to vary goes into grid.")
    return {**content, "title": str(content.get("title") or name)}


def _grid(grid: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if not isinstance(grid, dict) or not grid:
        raise UserError(f"{where}: grid must name what varies, such as `scenario: [3B, 3C]`; found {quoted(grid)}.")
    where = f"{where}, grid"
    axes: dict[str, tuple[Any, ...]] = {}
    for name, given in grid.items():
        values = given if isinstance(given, list) else [given]
        if not values or any(isinstance(value, list | dict) for value in values):
            raise UserError(f"{where}: {name} needs one value or more, such as [1, 2]; found {quoted(values)}.")
        if name == CENTRALISED:
            if any(not isinstance(value, bool) for value in values):
                raise UserError(f"{where}: {name} is true or false; found {quoted(values)}.")
        else:
            check_flag(name, where)
            for value in values:
                if FLAGS[name][0] is str and not isinstance(value, str | None):
                    raise UserError(f'{where}: {name} {quoted(value)} is no text; write it in quotes, such as "1,0,0".')
        if any(value in values[:place] for place, value in enumerate(values)):
            raise UserError(f"{where}: {name} has a value twice in {quoted(values)}.")
        axes[name] = tuple(values)
    return axes
