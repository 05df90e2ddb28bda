"""``fedbias data list|verify|fetch``: which data sets there are, where they are, and getting them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.catalog import (
    Located,
    all_known,
    digest_verdict,
    find_known,
    find_on_disk,
    has_mini,
)
from fedbias_plugin.data.catalog import locate as locate_dataset
from fedbias_plugin.data.data_files import read_records, read_text
from fedbias_plugin.data.download import Progress, download
from fedbias_plugin.errors import UserError, did_you_mean, printable, quoted
from fedbias_plugin.files import cache_folder, sha256_of_file
from fedbias_plugin.known_dataset import DataFile, KnownDataset
from fedbias_plugin.names import check_name
from fedbias_plugin.terminal import say

if TYPE_CHECKING:
    from rich.table import Table

FETCHED_BY_DEFAULT = ("crows_pairs", "stereoset", "biasdpo", "alpaca-gpt4")


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``data`` with its three actions."""
    parser = commands.add_parser(
        "data",
        help="list, verify or download the data sets",
        description="Looked for in this order: --data_dir, FEDBIAS_DATA, fetched files, the hub's cache, the package.",
    )
    actions = parser.add_subparsers(dest="data_action", required=True, metavar="ACTION")
    default = ", ".join(FETCHED_BY_DEFAULT)
    first = "folder looked into first; 'mini' shows the bundled mini data only"
    for action, folder, text in (
        ("list", first, "what the plugin knows and where each data set is found"),
        ("verify", first, "sha256 of every file found; exit code 1 when one differs from the known release"),
        (
            "fetch",
            "where to put the files; default FEDBIAS_CACHE or ~/.cache/fedbias_plugin",
            f"download data sets from their public homes; without NAME: {default}",
        ),
    ):
        action_parser = actions.add_parser(action, help=text, description=text[0].upper() + text[1:] + ".")
        if action != "list":
            names_help = "data sets, as fedbias data list names them"
            action_parser.add_argument("names", nargs="*", metavar="NAME", help=names_help)
        action_parser.add_argument("--data_dir", help=folder)
        if action == "fetch":
            action_parser.add_argument("--force", action="store_true", help="download even what is already there")
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Run one action; 0 on success, 1 when ``verify`` finds a file that differs."""
    if parsed.data_action == "list":
        return list_datasets(parsed.data_dir)
    if parsed.data_action == "verify":
        return verify(parsed.names, parsed.data_dir)
    return fetch(parsed.names or FETCHED_BY_DEFAULT, parsed.data_dir, force=parsed.force)


def list_datasets(data_dir: str | None) -> int:
    """Print every known data set with its rows, licence, home and place on this machine."""
    rows = []
    for known in all_known():
        found = _found(known, data_dir)
        count = f"{known.rows:,}" if known.rows else "-"
        if found and found.origin == "bundled":
            count = f"{_mini_rows(found):,}"
        elif found and found.form:
            count = f"{found.form.rows:,}" + (f" ({found.form.note})" if found.form.note else "")
        missing = f"not here: see {known.home}"
        if known.name == f"mini-{known.kind}":
            missing = "missing: install the package again"
        elif known.fetched_form is not None:
            missing = f"not here: fedbias data fetch {known.name}"
        where = (found.origin, str(found.path)) if found else ("-", missing)
        rows.append((known.name, known.kind, count, known.licence, *where))
    _print_table(("name", "kind", "rows", "licence", "found in", "where"), rows)
    for known in all_known():
        if known.warning and known.fetched_form is not None:
            say(f"{known.name}: {known.warning} Home: {known.home}.")
    return 0


def verify(names: Sequence[str], data_dir: str | None) -> int:
    """Print the sha256 of every file of every data set found; 1 when one is not a known release, else 0."""
    rows = []
    differs = False
    for known in [_known(name) for name in names] or all_known():
        found = _found(known, data_dir)
        if found is None:
            rows.append((known.name, "not here", "-", "-"))
            continue
        files = found.form.files if found.form else (None,) * len(found.paths)
        for file, path in zip(files, found.paths, strict=True):
            verdict = digest_verdict(file, path) if file else None
            differs = differs or verdict is False
            text = {True: "known release", False: "DIFFERS", None: "no checksum on record"}[verdict]
            rows.append((known.name, "bundled" if found.origin == "bundled" else text, sha256_of_file(path), str(path)))
    _print_table(("name", "checksum", "sha256", "file"), rows)
    return 1 if differs else 0


def fetch(names: Sequence[str], data_dir: str | None, *, force: bool = False) -> int:
    """Download data sets; what is already there as the known release is left alone unless ``force``.

    Raises:
        UserError: an unknown name, a data set without a home, or a failed download (what arrived before it is kept).
    """
    if data_dir == "mini":
        raise UserError("--data_dir mini stands for the bundled data; give a folder to download to, or nothing.")
    folder = Path(os.path.expanduser(check_name(data_dir, "--data_dir"))) if data_dir else cache_folder()
    wanted = [_known(name) for name in names]
    for known in wanted:
        if known.fetched_form is None:
            why = (
                "comes with the package"
                if known.name == f"mini-{known.kind}"
                else f"has no address here, see {known.home}"
            )
            raise UserError(f"{known.name} {why}; there is nothing to download.")
    for known in wanted:
        form = known.fetched_form
        assert form is not None
        is_new = [_fetch_file(known, file, file.url or form.url or "", folder, force) for file in form.files]
        if known.warning and any(is_new):
            say(f"  {known.warning}")
    return 0


def _fetch_file(known: KnownDataset, file: DataFile, url: str, folder: Path, force: bool) -> bool:
    """Download one file of a data set; False where it is there already."""
    target = folder / file.path
    if target.is_file() and not force and digest_verdict(file, target) is not False:
        say(f"{known.name}: already at {target}")
        return False
    with _progress(known.name) as progress:
        download(url, file, folder, progress)
    checked = "checksum of the known release" if file.sha256 or file.git_blob else "no checksum on record"
    say(f"{known.name}: {target} ({known.licence}; sha256 {sha256_of_file(target)}, {checked})")
    return True


def _known(name: str) -> KnownDataset:
    known = find_known(name)
    if known is None:
        names = [known.name for known in all_known()]
        hint = did_you_mean(name.lower(), names)
        raise UserError(f"The data set {quoted(name)} is unknown; choose from {', '.join(names)}.{hint}")
    return known


def _found(known: KnownDataset, data_dir: str | None) -> Located | None:
    """Where this very data set is, without falling back on the mini data; None when it is not on this machine."""
    if known.fetched_form is None:
        return locate_dataset(known.name) if has_mini(known.kind) else None
    return None if data_dir == "mini" else find_on_disk(known, data_dir)


def _mini_rows(found: Located) -> int:
    document = json.loads(read_text(found.path)) if found.path.suffix == ".json" else None
    return _items(document["data"] if isinstance(document, dict) else read_records(found.path))


def _items(part: Any) -> int:
    """How many entries the lists hold below the names of a document."""
    return sum(map(_items, part.values())) if isinstance(part, dict) else len(part)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines (for ``cut`` and ``awk``) elsewhere.

    Nothing in it is cut: columns for which the terminal is too narrow follow below, a value a line.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print("\t".join(row))
        return
    from rich.console import Console

    console = Console()
    unlimited, shown = console.options.update(max_width=100_000), len(header)
    while shown > 1 and console.measure(_table(header[:shown], rows), options=unlimited).maximum > console.width:
        shown -= 1
    console.print(_table(header[:shown], rows))
    column = max(len(row[0]) for row in rows)
    for place in range(shown, len(header)):
        print(header[place])
        for row in (row for row in rows if row[place] != "-"):
            on_one_line = f"  {row[0]:<{column}}  {row[place]}"
            print(on_one_line if len(on_one_line) <= console.width else f"  {row[0]}\n    {row[place]}")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for title in header:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row[: len(header)]))
    return table


@contextmanager
def _progress(name: str) -> Iterator[Progress | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda received, expected: bar.update(task, completed=received, total=expected)
