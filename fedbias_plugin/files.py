"""Files that matter appear whole or not at all, and are known by their hashes.

A file is written under a temporary name in the same folder, flushed to the disk and renamed, so that a crash leaves
the old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
    lost: list[str] = []
    return _plain(value, path, lost), lost


def _plain(value: Any, path: str, lost: list[str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, int)):  # an enum or a numpy string as the plain type
        return str.__str__(value) if isinstance(value, str) else int(value)
    if isinstance(value, float):
        lost += [] if math.isfinite(value) else [path]
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        named = {key if isinstance(key, str) else str(key): part for key, part in value.items()}
        return {name: _plain(part, f"{path}/{name}" if path else name, lost) for name, part in named.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part, f"{path}/{index}" if path else str(index), lost) for index, part in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item(), path, lost)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), path, lost)
    raise TypeError(f"{path or 'the value'} is a {type(value).__name__}, which has no JSON form")


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8, line feeds as they are) with :func:`write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes, *, keeps_owner: bool = False) -> None:
    """Write ``data`` to ``path`` so that a reader finds the old file or the whole new one.

    Missing parent folders are made. The file gets the permissions any new file would get; with ``keeps_owner`` those of
    the file whose place it takes, and its owner and group where the system lets us.

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
        if keeps_owner:
            with contextlib.suppress(OSError, AttributeError):  # Windows has no chown
                os.chown(temporary, target.stat().st_uid, target.stat().st_gid)
            shutil.copymode(target, temporary)
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


def sha256_of_files(paths: Sequence[Path]) -> str:
    """SHA-256 of one file, or of the text ``<hash>  <file name>\\n`` per file for several."""
    digests = [sha256_of_file(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    listing = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    return _digest(hashlib.sha256(), path)


def git_blob_of_file(path: Path) -> str:
    """The id git gives the file's content: SHA-1 of ``blob <size>\\0`` and the content."""
    return _digest(hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False), path)


def _digest(digest: Any, path: Path) -> str:
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
