"""Data sets of the Hugging Face hub: what its cache holds, and loading one by name."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError, first_line
from fedbias_plugin.versions import version_numbers

logger = logging.getLogger(__name__)

PROBE_SECONDS = 5.0
HUB_FOLDER = "huggingface/hub"
"""Of the hub's cache, in the folder of all caches."""


def hub_cache() -> Path:
    """The hub's cache folder, by the environment variables huggingface_hub documents (read at call time)."""
    places = (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", HUB_FOLDER))
    found = ((os.environ[variable], below) for variable, below in places if os.environ.get(variable))
    folder, below = next(found, ("~/.cache", HUB_FOLDER))
    return Path(os.path.expanduser(folder)) / below


def is_hub_name(name: str) -> bool:
    """Whether ``name`` can be that of a data set on the hub, ``owner/name``; ``..`` and the like cannot."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name, re.ASCII) is not None


def cached_snapshot(hub_id: str, kind: str) -> Path | None:
    """The ``main`` snapshot of a repository in the hub's cache, or None; ``kind`` is ``models`` or ``datasets``."""
    repository = hub_cache() / f"{kind}--{hub_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not re.fullmatch(r"\w+", revision, re.ASCII):  # a commit, and never the way out of the cache
        return None
    return repository / "snapshots" / revision


def cached_data_set(hub_id: str) -> bool:
    """Whether a cache of the hub or of ``datasets`` seems to hold something of this data set.

    The folders of ``datasets`` have had several names (``owner___name``, ``owner--name-HASH``, in snake case), so only
    letters and digits are compared.
    """
    if cached_snapshot(hub_id, "datasets") is not None:
        return True
    cache = Path(os.path.expanduser(os.environ.get("HF_DATASETS_CACHE") or hub_cache().parent / "datasets"))
    names = (path.name for pattern in ("*", "*/*") for path in cache.glob(pattern))
    wanted, *found = (re.sub(r"[^a-z0-9]", "", name.lower()) for name in (hub_id, *names))
    return any(wanted in name for name in found)


def cached_files(hub_id: str, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """The training files of a data set in the hub's cache, by name; empty when it is not there.

    Only the plain layout is understood: the ``main`` snapshot, whose data files are all of one format, restricted to
    those with ``train`` in the name when there are such.
    """
    snapshot = cached_snapshot(hub_id, "datasets")
    if snapshot is None:
        return ()
    files = sorted(path for path in snapshot.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    files = [path for path in files if "train" in path.name.lower()] or files
    return tuple(files) if len({path.suffix.lower() for path in files}) == 1 else ()


def load_hub_rows(hub_id: str, flag: str, known_as: str | None = None) -> list[dict[str, Any]]:
    """The ``train`` split of a hub data set as a list of objects, from the cache of ``datasets`` or the network.

    ``HF_HUB_OFFLINE`` is respected; when the hub does not answer within five seconds only the cache is read, so that a
    machine without network does not hang in retries.

    Raises:
        UserError: ``datasets`` is not installed, or the data set cannot be loaded; the message says what to do
            instead, with the command line flag ``flag`` and the name ``fedbias data fetch`` has for the data set.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{hub_id} comes from the hub, which needs datasets; run: pip install datasets.") from None
    fetch = f", or, where there is a network, run: fedbias data fetch {known_as}" if known_as else ""
    options = without_scripts(datasets.__version__, f"Give a local file with --{flag} FILE.json{fetch}.")
    try:
        with _offline_when_unreachable():
            return list(datasets.load_dataset(hub_id, split="train", **options))
    except Exception as error:  # whatever datasets, huggingface_hub, fsspec or the transport below them raise
        reason = first_line(error)
        raise UserError(
            f"The hub data set {hub_id} cannot be loaded: {reason.rstrip('.')}. Give a local file with --{flag} "
            f"FILE.json, a folder that holds it with --data_dir{fetch}."
        ) from error


def without_scripts(version: str, advice: str) -> dict[str, Any]:
    """What keeps ``load_dataset`` of this ``version`` from running a Python script that comes with a data set.

    From 4.0 on ``datasets`` has no scripts. From 2.16 on it can be told to run none. Before, it runs them unasked.

    Raises:
        UserError: this ``datasets`` cannot be kept from it.
    """
    if version_numbers(version) >= (4,):
        return {}
    if version_numbers(version) >= (2, 16):
        return {"trust_remote_code": False}
    raise UserError(
        f"datasets {version} runs code that comes with a data set, so nothing is loaded from the hub with it; 2.16 and "
        f"newer can be kept from that. {advice}"
    )


def hub_endpoint() -> str:
    """The hub's address, ``HF_ENDPOINT`` if set."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def why_no_hub() -> str | None:
    """Why the hub cannot be asked, or None; without an answer in five seconds there is no network to it."""
    import huggingface_hub.constants as hub_constants

    if getattr(hub_constants, "HF_HUB_OFFLINE", False):
        return "HF_HUB_OFFLINE is set"
    return None if _hub_answers() else f"{hub_endpoint()} does not answer"


def _hub_answers() -> bool:
    import urllib.error
    import urllib.request

    try:
        request = urllib.request.Request(hub_endpoint(), method="HEAD")
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # an answer, if an unfriendly one
    except (OSError, ValueError):
        return False


@contextmanager
def _offline_when_unreachable() -> Iterator[None]:
    """Put huggingface_hub and datasets into their offline mode for a while if the hub does not answer."""
    import datasets.config as datasets_config
    import huggingface_hub.constants as hub_constants

    if getattr(hub_constants, "HF_HUB_OFFLINE", False) or _hub_answers():
        yield
        return
    logger.info("%s does not answer; looking into the local cache only", hub_endpoint())
    switches = [
        (module, name)
        for module in (hub_constants, datasets_config)
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
        if hasattr(module, name)
    ]
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)
