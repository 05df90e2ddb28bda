"""Hashes of files, read in blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
