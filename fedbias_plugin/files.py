"""Files that matter appear whole or not at all.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so that a crash leaves
the old file or the new one, never half of one.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError

logger = logging.getLogger(__name__)

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


def plain_json(value: Any, path: str = "") -> tuple[Any, list[str]]:
    """Turn ``value`` into what strict JSON can hold.

    Tuples and sets become lists (sets sorted), dataclasses and mappings become dicts with string keys, paths become
    strings, numpy and torch scalars become numbers. NaN and infinities have no JSON form and become None.

    Args:
        value: anything made of the types above.
        path: where ``value`` sits, for the second result; keys are joined with ``/``.

    Returns:
        The JSON-ready value, and the paths of the numbers that were not finite.

    Raises:
        TypeError: a value of another type; the message names its path.
    """
    if value is None or isinstance(value, (bool, str, int)):
        return (value if type(value) in (bool, str, int, type(None)) else _plain_scalar(value)), []
    if isinstance(value, float):
        return (float(value), []) if math.isfinite(value) else (None, [path])
    if isinstance(value, os.PathLike):
        return os.fspath(value), []
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return _plain_mapping(value, path)
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return _plain_list(value, path)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return plain_json(value.item(), path)
    if hasattr(value, "tolist"):
        return plain_json(value.tolist(), path)
    raise TypeError(f"{path or 'the value'} is a {type(value).__name__}, which has no JSON form")


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8, line feeds as they are) with :func:`write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader finds the old file or the whole new one.

    Missing parent folders are made. The file gets the permissions any new file would get.

    Raises:
        OSError: the folder cannot be written; no temporary file stays behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def delete_temporary_files(folder: Path) -> None:
    """Remove what writes into ``folder`` and the folders in it left behind when their process was killed."""
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        path.unlink(missing_ok=True)


def packaged_folder(package: Path, name: str, marker: str) -> Path:
    """The folder ``name``, known by ``marker`` in it: in the installed ``package``, or beside it, in the repository.

    Raises:
        UserError: it is in neither place.
    """
    candidates = (package / name, package.parent / name)
    for folder in candidates:
        if (folder / marker).exists():
            return folder
    raise UserError(
        f"{marker} is neither in {candidates[0]} nor in {candidates[1]}: this installation is incomplete; install "
        "fedbias_plugin again from its folder: pip install -e ."
    )


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to be filled, under another name, that takes the place of ``target`` when the block ends well.

    What is in it must be on the disk by then (:func:`sync_file`). An older ``target`` is deleted then; when the block
    fails, the folder is.
    """
    partial = target.with_name(f".{target.name}.fedbias-partial")  # a name that no folder of a user has
    if partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
        yield partial
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as strict, indented JSON with :func:`write_text_atomic`.

    NaN and infinities are written as null, with one warning that names them.

    Raises:
        TypeError: a value has no JSON form; nothing is written.
        OSError: the folder cannot be written.
    """
    plain, lost = plain_json(value)
    if lost:
        logger.warning("%s: not finite, written as null: %s", os.fspath(path), ", ".join(lost))
    write_text_atomic(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def apply_umask(path: str | os.PathLike[str]) -> None:
    """Give a file the mode that any new file would get; safetensors writes files that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


@contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises within the block, in Python or in a Rust library, into a UserError."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
        if code not in DISK_ERRORS:
            raise
        raise UserError(f"{folder}, or a temporary file, cannot be written: {error}") from error


def cache_folder() -> Path:
    """What may be made or fetched anew is kept here: ``FEDBIAS_CACHE``, else ``~/.cache/fedbias_plugin``.

    A user without a home, as in some containers, gets a folder among the temporary ones.
    """
    try:
        cache = os.environ.get("FEDBIAS_CACHE")
        return Path(cache).expanduser() if cache else Path.home() / ".cache" / "fedbias_plugin"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "fedbias_plugin"


def sync_file(path: str | os.PathLike[str]) -> None:
    """Force what was written to ``path`` to the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in ``folder`` survive a power cut, where the system can (not on Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _plain_scalar(value: Any) -> Any:
    """A subclass of str or int (an enum, a numpy string) as the plain type."""
    return str.__str__(value) if isinstance(value, str) else int(value)


def _plain_mapping(value: Mapping[Any, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    result, lost = {}, []
    for key, part in value.items():
        name = key if isinstance(key, str) else str(key)
        result[name], part_lost = plain_json(part, f"{path}/{name}" if path else name)
        lost += part_lost
    return result, lost


def _plain_list(value: list[Any] | tuple[Any, ...], path: str) -> tuple[list[Any], list[str]]:
    result, lost = [], []
    for index, part in enumerate(value):
        plain, part_lost = plain_json(part, f"{path}/{index}" if path else str(index))
        result.append(plain)
        lost += part_lost
    return result, lost
