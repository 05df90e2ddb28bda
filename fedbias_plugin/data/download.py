"""Downloading one data file: to a temporary name, checked, then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from fedbias_plugin.data.catalog import digest_verdict
from fedbias_plugin.data.hub import hub_endpoint
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import sha256_of_file
from fedbias_plugin.known_dataset import DataFile

TIMEOUT_SECONDS = 30.0
Progress = Callable[[int, "int | None"], None]
"""Called with the bytes received so far and the bytes expected (None when the server does not say)."""


def download(url: str, file: DataFile, folder: Path, progress: Progress | None = None) -> Path:
    """Download ``url`` to ``folder / file.path`` and return that path.

    The target appears only when the whole file has arrived and its digest is one on record (when there is one); an
    older file there is replaced in one step and is left as it was on failure.

    Raises:
        UserError: no answer, an HTTP error, a download cut short, a wrong checksum, or a folder that cannot be
            written; the message names the address, the target and what to do.
    """
    url = url.replace("https://huggingface.co", hub_endpoint(), 1)
    target = folder / file.path
    by_hand = f"Download it by hand to {target}, or give a folder that holds {file.path} as --data_dir."
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as stream:
                _receive(url, stream, progress, by_hand)
                stream.flush()
                os.fsync(stream.fileno())
            if digest_verdict(file, temporary) is False:
                raise UserError(
                    f"{url} gave a file with sha256 {sha256_of_file(temporary)}, which is not the known release; "
                    f"nothing was kept. The file at its home may have changed. {by_hand}"
                )
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None
    return target


def _receive(url: str, stream: BinaryIO, progress: Progress | None, by_hand: str) -> None:
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, headers={"User-Agent": "fedbias_plugin"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            length = response.headers.get("Content-Length") or ""
            expected = int(length) if length.isdecimal() else None
            received = 0
            for block in iter(lambda: response.read(1 << 16), b""):
                stream.write(block)
                received += len(block)
                if progress:
                    progress(received, expected)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url} answered {error.code} {error.reason}. {by_hand}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(f"{url} cannot be reached: {reason}. {by_hand}") from None
    if expected is not None and received != expected:
        raise UserError(f"{url} was cut short: {received:,} of {expected:,} bytes arrived; try again.")
