"""Where ``configs/`` is: in the installed package, or at the top of the repository."""

from __future__ import annotations

from pathlib import Path

from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.files import packaged_folder

PACKAGE = Path(__file__).parent


def configs_folder() -> Path:
    """The folder that holds ``models/``, ``experiments/`` and ``paper_results.yaml``.

    Raises:
        UserError: it is in neither place.
    """
    return packaged_folder(PACKAGE, "configs", "experiments")


def config_names(kind: str) -> list[str]:
    """Names of our ``experiments`` or ``models``; none where the installation is incomplete."""
    try:
        folder = configs_folder() / kind
    except UserError:
        return []
    return [path.stem for path in sorted(folder.glob("*.yaml"))]


def find_config(kind: str, given: str, flag: str) -> Path:
    """The file that the user ``given`` a path or, for one of ours, its name (``table1``).

    Args:
        kind: ``experiments`` or ``models``.
        given: what the user wrote.
        flag: where, for the error.

    Raises:
        UserError: there is neither such a file nor such a name; the nearest name is suggested.
    """
    path = Path(given)
    if path.is_file():
        return path
    ours = config_names(kind)
    if given in ours:
        return configs_folder() / kind / f"{given}.yaml"
    hint = did_you_mean(path.stem, ours)
    raise UserError(f"{flag} {given}: there is no such file, and none of ours is called so ({', '.join(ours)}).{hint}")
