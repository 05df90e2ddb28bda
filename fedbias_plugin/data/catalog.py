"""Where a data set is on this machine.

Looked for in this order: ``--data_dir``, the folder ``FEDBIAS_DATA`` names, what ``fedbias data fetch`` downloaded, the
Hugging Face cache, the bundled mini data. Nothing here touches the network.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.data_files import SUFFIXES
from fedbias_plugin.data.hub import cached_files, is_hub_name
from fedbias_plugin.data.known import KNOWN, LABELLED, MINI_ROWS
from fedbias_plugin.errors import UserError, did_you_mean, quoted
from fedbias_plugin.files import cache_folder, git_blob_of_file, sha256_of_file, sha256_of_files
from fedbias_plugin.known_dataset import DataFile, Form, KnownDataset
from fedbias_plugin.names import check_name
from fedbias_plugin.registry import load, names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """A data set and where it is.

    ``origin`` is ``data_dir``, ``FEDBIAS_DATA``, ``fetched``, ``hub cache``, ``bundled``, ``file`` (a path given), or
    ``hub`` (a download that has yet to happen: ``paths`` is empty, ``sha256`` None and ``hub_id`` set).
    """

    name: str
    kind: str
    origin: str
    paths: tuple[Path, ...] = ()
    sha256: str | None = None
    hub_id: str | None = None
    form: Form | None = None

    @property
    def path(self) -> Path:
        """The (first) file.

        Raises:
            UserError: the data set is not on this machine.
        """
        if not self.paths:
            raise UserError(f"{self.name} is not on this machine; run: fedbias data fetch {self.name}.")
        return self.paths[0]


def locate(name: str, data_dir: str | Path | None = None, kind: str | None = None) -> Located:
    """Find one data set, by known name, hub name, path, or ``auto``.

    Args:
        name: a known name (``fedbias data list``), a hub name such as ``vicgalle/alpaca-gpt4``, the path of a data
            file, ``mini``, or ``auto`` (which, like ``mini``, needs ``kind``).
        data_dir: folder looked into first; ``mini`` stands for the bundled mini data, whatever ``name`` is.
        kind: ``clean``, ``labelled`` (clean rows with labels), ``biased``, or the name of a metric; a known data set of
            another kind is refused.

    Raises:
        UserError: an unknown name or kind, an absent file, or a data folder that does not exist.
    """
    check_name(name, "The data set")
    known = find_known(name)
    if Path(name).suffix.lower() in SUFFIXES or (known is None and os.path.isfile(name)):
        return _given_file(name, kind or "file")
    if known is None and name not in ("auto", "mini"):
        return _unknown_name(name, kind)
    kind = _checked_kind(known, kind)
    if name == "mini" or (known and known.name == f"mini-{kind}"):
        return _bundled(kind)
    usual = next(
        dataset
        for dataset in known_datasets().values()
        if (dataset.has_labels if kind == LABELLED else dataset.kind == kind)
    )
    wanted = known or usual
    if str(data_dir) == "mini":
        if wanted is not usual:
            logger.warning("--data_dir mini: the bundled mini data take the place of %s.", wanted.name)
        return _bundled(kind)
    found = find_on_disk(wanted, data_dir)
    if found is not None:
        if found.form and found.form.note:
            logger.info("%s: %s, %s rows (%s)", wanted.name, found.form.note, f"{found.form.rows:,}", found.path.name)
        return found
    if name != "auto" and wanted.hub_id:
        return Located(wanted.name, kind, "hub", hub_id=wanted.hub_id)
    if kind not in mini_files():
        raise UserError(f"{wanted.name} is not on this machine; run: fedbias data fetch {wanted.name}.")
    level = logging.WARNING if data_dir else logging.DEBUG  # a folder was given: its content was meant
    where = f"neither in {data_dir} (as {wanted.forms[0].files[0].path}) nor elsewhere" if data_dir else "not"
    fetch = f"fedbias data fetch {wanted.name}"
    logger.log(level, "%s is %s on this machine: using the bundled mini data (%s)", wanted.name, where, fetch)
    return _bundled(kind)


def find_on_disk(known: KnownDataset, data_dir: str | Path | None = None) -> Located | None:
    """The first place on this machine that holds all files of a form of ``known``, or None."""
    for origin, folder in data_folders(data_dir):
        for form in known.forms:
            paths = tuple(folder / file.path for file in form.files)
            if all(os.path.isfile(path) for path in paths):
                for file, path in zip(form.files, paths, strict=True):
                    if digest_verdict(file, path) is False:
                        logger.warning("%s: %s differs from the known release of %s.", known.name, path, known.title)
                return Located(known.name, known.kind, origin, paths, sha256_of_files(paths), known.hub_id, form)
    cached = cached_files(known.hub_id, SUFFIXES) if known.hub_id else ()
    if cached:
        return Located(known.name, known.kind, "hub cache", cached, sha256_of_files(cached), known.hub_id)
    return None


def data_folders(data_dir: str | Path | None = None) -> Iterator[tuple[str, Path]]:
    """The folders data sets are looked for in, with the origin each stands for.

    Raises:
        UserError: ``data_dir`` or the folder in ``FEDBIAS_DATA`` does not exist.
    """
    given = None if str(data_dir) == "mini" else data_dir
    for origin, what, folder in (
        ("data_dir", "--data_dir", given),
        ("FEDBIAS_DATA", "the environment variable FEDBIAS_DATA", os.environ.get("FEDBIAS_DATA")),
    ):
        if folder:
            path = Path(os.path.expanduser(check_name(str(folder), what)))
            if not os.path.isdir(path):
                raise UserError(f"{what} names the folder {folder}, which does not exist.")
            yield origin, path
    if os.path.isdir(cache_folder()):
        yield "fetched", cache_folder()


def known_datasets() -> dict[str, KnownDataset]:
    """Every data set the plugin knows by name, the bundled ones aside: training rows, then what the metrics bring."""
    brought = [dataset for metric in _metrics().values() for dataset in metric.datasets]
    return {**KNOWN, **{dataset.name: dataset for dataset in brought}}


def mini_files() -> dict[str, str]:
    """Kind of data -> file of its bundled mini data, known as ``mini-<kind>``."""
    return {**MINI_ROWS, **{one.datasets[0].kind: one.mini_file for one in _metrics().values() if one.mini_file}}


def all_known() -> list[KnownDataset]:
    """Every data set the plugin knows, the bundled ones last."""
    return [*known_datasets().values(), *map(_mini, mini_files())]


def find_known(name: str) -> KnownDataset | None:
    """The known data set with this name or hub name (upper and lower case alike), or None."""
    wanted = name.lower()
    for known in all_known():
        if wanted in (known.name, known.title.lower(), (known.hub_id or "").lower()):
            return known
    return None


def digest_verdict(file: DataFile, path: Path) -> bool | None:
    """Whether ``path`` is a known release of ``file``; None when no digest is on record."""
    if not file.sha256 and not file.git_blob:
        return None
    return sha256_of_file(path) in file.sha256 or (bool(file.git_blob) and git_blob_of_file(path) in file.git_blob)


def mini_notice(origins: Mapping[str, str]) -> str | None:
    """One line for the user when a data set (name -> origin) is ``bundled``, else None."""
    bundled = [name for name, origin in origins.items() if origin == "bundled"]
    if not bundled:
        return None
    names = ", ".join(bundled)
    return f"Using the bundled mini data (an invented world) for {names}; fedbias data list shows the real ones."


def has_mini(kind: str) -> bool:
    """Whether this installation holds the bundled mini data of a kind."""
    name = mini_files().get(kind)
    return name is not None and (MINI_DATA / name).is_file()


def _metrics() -> dict[str, Any]:
    """The metrics that come with data sets, by name."""
    return {name: metric for name in names("metric") if getattr(metric := load("metric", name), "datasets", ())}


def _bundled(kind: str) -> Located:
    if kind not in mini_files():
        raise UserError(f"There are no bundled mini data of the kind {kind}.")
    path = MINI_DATA / mini_files()[kind]
    if not path.is_file():
        raise UserError(f"The bundled mini data are incomplete: {path} is missing; install the package again.")
    return Located(f"mini-{kind}", kind, "bundled", (path,), sha256_of_file(path), form=_mini(kind).forms[0])


def _mini(kind: str) -> KnownDataset:
    forms = (Form((DataFile(mini_files()[kind]),), rows=0),)
    warning, title = "An invented world.", f"bundled mini data, {kind}"
    return KnownDataset(f"mini-{kind}", kind, title, "Apache-2.0", "this package", forms, warning=warning)


def _given_file(name: str, kind: str) -> Located:
    path = Path(os.path.expanduser(name))
    if not os.path.isfile(path):  # Path.is_file fails where a name is too long or a folder may not be looked into
        raise UserError(f"{name}: there is no such file.")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{name}: the format is told by the suffix, which must be one of {', '.join(SUFFIXES)}.")
    return Located(path.name, kind, "file", (path,), sha256_of_file(path))


def _unknown_name(name: str, kind: str | None) -> Located:
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder; name the file in it, or give the folder as --data_dir.")
    if is_hub_name(name) and kind in ("clean", LABELLED, "biased"):
        cached = cached_files(name, SUFFIXES)
        if cached:
            return Located(name, str(kind), "hub cache", cached, sha256_of_files(cached), name)
        return Located(name, str(kind), "hub", hub_id=name)
    names = [
        known.name for known in all_known() if kind in (None, known.kind) or (kind == LABELLED and known.has_labels)
    ]
    hint = did_you_mean(name.lower(), names)
    raise UserError(
        f"The data set {quoted(name)} is neither a known name ({', '.join(names)}) nor a hub name (owner/name) nor a "
        f"file ({', '.join(SUFFIXES)}).{hint}"
    )


def _checked_kind(known: KnownDataset | None, kind: str | None) -> str:
    if known is None:
        kinds = tuple(dict.fromkeys([*(dataset.kind for dataset in known_datasets().values()), LABELLED]))
        if kind not in kinds:
            raise UserError(f"The kind of data {quoted(kind)} is unknown; choose one of {', '.join(kinds)}.")
        return kind
    if kind == LABELLED and known.kind == "clean":
        return kind  # a set without labels is refused by its columns
    if kind is not None and known.kind != kind:
        evaluation_only = " It is for evaluation only: never train on it." if known.kind not in MINI_ROWS else ""
        raise UserError(f"{known.name} holds {known.kind} data, but {kind} data are wanted here.{evaluation_only}")
    return known.kind
