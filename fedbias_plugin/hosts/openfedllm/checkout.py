"""The scripts of an OpenFedLLM checkout on disk: found and read, and written all or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import sync_folder

CLONE = "git clone https://github.com/rui-ye/OpenFedLLM"
IMPORTS_CONFIG = re.compile(rb"^(from config import|import config\b)", re.MULTILINE)


@dataclass(frozen=True)
class FileChange:
    """The bytes of a script before and after."""

    path: Path
    before: bytes
    after: bytes


def read_checkout(folder: Path, names: Collection[str]) -> dict[str, bytes]:
    """The bytes of every script of ``names`` that ``folder`` holds.

    Raises:
        UserError: no such folder, none of the scripts in it, or a script that is a link or cannot be read.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give that of an OpenFedLLM checkout ({CLONE})")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; give the folder of an OpenFedLLM checkout that holds {', '.join(names)}")
    scripts = {name: _read(folder / name) for name in names if os.path.lexists(folder / name)}
    if not scripts:
        raise UserError(f"{no_checkout(folder)}: it holds none of {', '.join(names)}.{_nearby(folder, names)}")
    return scripts


def no_checkout(folder: Path) -> str:
    """The beginning of a message about a folder that is something else."""
    return f"{folder} is no OpenFedLLM checkout ({CLONE})"


def scripts_that_import_config(folder: Path, known: Collection[str]) -> tuple[str, ...]:
    """The names of the scripts of ``folder``, other than ``known``, that import its config.py."""
    others = [path for path in sorted(folder.glob("*.py")) if path.name not in known and os.access(path, os.R_OK)]
    return tuple(path.name for path in others if path.is_file() and IMPORTS_CONFIG.search(path.read_bytes()))


def check_writable(paths: Sequence[Path]) -> list[str]:
    """What forbids to replace the files: their permissions, or their folder's. Root is held to them as well."""
    problems = []
    for path in paths:
        if not _writable(path, os.W_OK):
            problems.append(f"{path.name} is read-only; allow writing: chmod u+w {path}")
    for folder in sorted({path.parent for path in paths}):
        if not _writable(folder, os.W_OK | os.X_OK):
            problems.append(f"the folder {folder} is read-only; allow writing: chmod u+w {folder}")
    return problems


def replace_files(changes: Sequence[FileChange]) -> None:
    """Write every change, each file whole or not at all; when one fails, put back those written before.

    Raises:
        UserError: a file could not be written; the message names it, and every file that could not be put back.
    """
    written: list[FileChange] = []
    try:
        for change in changes:
            written.append(change)
            _replace(change.path, change.after)
    except BaseException as error:
        stuck = [str(change.path) for change in written if not _put_back(change)]
        if not isinstance(error, OSError):
            raise
        outcome = f"these are changed all the same: {', '.join(stuck)}" if stuck else "every file is as it was"
        raise UserError(f"{written[-1].path} could not be written: {error.strerror or error}; {outcome}") from error


def _read(path: Path) -> bytes:
    if path.is_symlink():
        raise UserError(
            f"{path} is a symbolic link to {os.readlink(path)}: the change would reach beyond this checkout. "
            "Give the checkout that holds the file itself, or put a copy in the place of the link"
        )
    if not path.is_file():
        raise UserError(f"{path} is no file; an OpenFedLLM checkout has a script of that name")
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _nearby(folder: Path, names: Collection[str]) -> str:
    """A pointer to a checkout one level up or down, where exactly one is there."""
    try:
        around = [path for path in (folder.resolve().parent, *folder.iterdir()) if path.is_dir()]
        near = [path for path in around if all((path / name).is_file() for name in names)]
    except OSError:
        return ""
    return f" Did you mean {near[0]}?" if len(near) == 1 else ""


def _writable(path: Path, access: int) -> bool:
    return bool(path.stat().st_mode & stat.S_IWUSR) and os.access(path, access)


def _put_back(change: FileChange) -> bool:
    try:
        if change.path.read_bytes() != change.before:
            _replace(change.path, change.before)
    except OSError:
        return False
    return True


def _replace(path: Path, data: bytes) -> None:
    """Put ``data`` in the place of a file, by a rename; its permissions and owner stay."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _keep_owner(path, temporary)
        shutil.copymode(path, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _keep_owner(path: Path, temporary: Path) -> None:
    """The owner and group of the old file for the new one, where the system lets us."""
    old = path.stat()
    if hasattr(os, "chown") and (old.st_uid, old.st_gid) != (os.getuid(), os.getgid()):
        with contextlib.suppress(OSError):
            os.chown(temporary, old.st_uid, old.st_gid)
