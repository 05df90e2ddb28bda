"""``patches/*.yaml``: which lines a family of OpenFedLLM checkouts gets, and where."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import packaged_folder

MARKER = "# added by fedbias patch"
PLACES = ("start", "before", "after")
PACKAGE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Insertion:
    """One line to add to a script.

    Attributes:
        line: the line without its end; it closes with :data:`MARKER`.
        where: ``start`` (below leading comments), or ``before`` or ``after`` the anchor.
        place: the same in words.
        anchor: what the neighbouring line looks like; None for ``start``.
    """

    line: str
    where: str
    place: str
    anchor: str | None = None

    def __post_init__(self) -> None:
        if self.where not in PLACES:
            raise ValueError(f"where: {self.where!r} is none of {', '.join(PLACES)}")
        if (self.anchor is None) != (self.where == "start"):
            raise ValueError(f"where: {self.where} with anchor {self.anchor!r}")
        if not self.line.endswith("  " + MARKER):
            raise ValueError(f"a line does not end with {MARKER!r}: {self.line}")
        if self.anchor is not None:
            re.compile(self.anchor)


@dataclass(frozen=True)
class ScriptPatch:
    """What one script gets, the names it must use for that to have an effect, and those that get another meaning."""

    insertions: tuple[Insertion, ...]
    calls: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """Checkouts that are patched alike.

    Attributes:
        name: as shown to the user.
        scripts: what each script gets, by file name.
        recognised_by: a name the entry scripts of this family use and no others do; None for the general family.
    """

    name: str
    scripts: dict[str, ScriptPatch]
    recognised_by: str | None = None


def load_families(folder: Path | None = None) -> list[Family]:
    """Every family of ``folder`` (default: the plugin's own), the general one last.

    Raises:
        UserError: the folder holds no patch files, or one of them cannot be used; the message names it.
    """
    folder = folder or patches_folder()
    families = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            families.append(_family(_read(path)))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, re.error) as error:
            raise UserError(f"{path}: not a patch file: {type(error).__name__}: {error}") from error
    if not families:
        raise UserError(f"{folder} holds no patch files (*.yaml)")
    return sorted(families, key=lambda family: family.recognised_by is None)


def recognise(families: list[Family], names: Collection[str]) -> Family:
    """The family of a checkout whose entry scripts use ``names``."""
    return next(family for family in families if family.recognised_by is None or family.recognised_by in names)


def patches_folder() -> Path:
    """Where the patch files are: in the installed package, or at the top of the repository.

    Raises:
        UserError: they are in neither place.
    """
    return packaged_folder(PACKAGE, "patches", "openfedllm.yaml")


def _read(path: Path) -> dict[str, Any]:
    """The mapping in a patch file, completed by the file it extends."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    base = content.pop("extends", None)
    return content if base is None else _completed(_read(path.with_name(f"{base}.yaml")), content)


def _completed(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own``, with what it lacks from ``base``; mappings are completed inside, lists are replaced whole."""
    result = base | own
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            result[key] = _completed(base[key], own[key])
    return result


def _family(content: dict[str, Any]) -> Family:
    scripts = {
        name: ScriptPatch(
            tuple(Insertion(**entry) for entry in script["insertions"]),
            tuple(script.get("calls", ())),
            tuple(script.get("replaces", ())),
        )
        for name, script in content["scripts"].items()
    }
    return Family(content["name"], scripts, content.get("recognised_by"))
