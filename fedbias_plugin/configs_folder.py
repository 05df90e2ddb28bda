"""Where ``configs/`` is: in the installed package, or at the top of the repository."""

from __future__ import annotations

from pathlib import Path

from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.files import packaged_folder

PACKAGE = Path(__file__).parent
RUNS = "runs"
FILES_OF_FLAGS = ("quickstart",)
"""Those beside ``models/`` and ``experiments/`` that ``fedbias run --config`` takes."""


def configs_folder() -> Path:
    """The folder that holds ``models/``, ``experiments/``, ``studies/`` and ``paper_results.yaml``.

    Raises:
        UserError: it is in neither place.
    """
    return packaged_folder(PACKAGE, "configs", "experiments")


def config_names(kind: str) -> list[str]:
    """Names of our ``experiments``, ``models`` or ``runs`` (files of flags); none in an incomplete installation."""
    try:
        folder = _folder(kind)
    except UserError:
        return []
    names = [path.stem for path in sorted(folder.glob("*.yaml"))]
    return [name for name in names if kind != RUNS or name in FILES_OF_FLAGS]


def find_config(kind: str, given: str, flag: str) -> Path:
    """The file that the user ``given`` a path, or for one of ours its name (``table1``) or its path in the repository.

    Args:
        kind: ``experiments``, ``models`` or ``runs``.
        given: what the user wrote.
        flag: where, for the error.

    Raises:
        UserError: there is neither such a file nor such a name; the nearest name is suggested.
    """
    path = Path(given)
    if path.is_file():
        return path
    ours = config_names(kind)
    by_path = {f"configs/{(_folder(kind) / name).relative_to(configs_folder())}.yaml": name for name in ours}
    name = by_path.get(path.as_posix(), given)
    if name in ours:
        return _folder(kind) / f"{name}.yaml"
    hint = did_you_mean(path.stem, ours)
    raise UserError(f"{flag} {given}: there is no such file, and none of ours is called so ({', '.join(ours)}).{hint}")


def _folder(kind: str) -> Path:
    return configs_folder() if kind == RUNS else configs_folder() / kind
