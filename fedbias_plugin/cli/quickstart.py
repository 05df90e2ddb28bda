"""``fedbias quickstart``: the bundled small world with FedAvg and with FedAvg + BAMA, side by side."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedbias_plugin.errors import UserError
from fedbias_plugin.machine import cores
from fedbias_plugin.terminal import say

FOLDER = "runs/quickstart"
RUNS = {"fedavg": "plain", "fedavg_bama": "bama"}
"""Folder of a run -> its ``--aggregation``."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``quickstart`` to the subcommands of ``fedbias``."""
    parser = commands.add_parser(
        "quickstart",
        help="a first example: one biased client of three, with FedAvg and with BAMA, side by side",
        description="Scenario 1B2C (one client of three holds biased rows) on the bundled model and data, once with "
        "plain FedAvg and once with FedAvg + BAMA, then both bias curves side by side. No GPU and no network; some "
        "minutes.",
    )
    parser.add_argument(
        "folder", nargs="?", default=FOLDER, metavar="FOLDER", help=f"output folder (default: {FOLDER})"
    )
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Run both and compare them.

    Raises:
        UserError: the folder is there already.
    """
    return quickstart(Path(parsed.folder))


def quickstart(folder: Path, flags: Sequence[str] = ()) -> int:
    """Both runs in ``folder``, at the same time where there are two cores, and their comparison.

    Args:
        folder: must not be there.
        flags: of ``fedbias run``, over those of the quickstart, for both.

    Returns:
        The exit code of the first command that fails, or 0.

    Raises:
        UserError: the folder is there.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it or give another folder: fedbias quickstart FOLDER")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a model this small gains nothing from a second thread
    outputs = {str(folder / name): aggregation for name, aggregation in RUNS.items()}
    first, second = (
        ["run", "--config", "quickstart", "--aggregation", aggregation, "--output_dir", output, *flags]
        for output, aggregation in outputs.items()
    )
    if cores() < 2:
        code = _fedbias(*first) or _fedbias(*second)
    else:
        with beside([sys.executable, "-m", "fedbias_plugin", *second]) as finished:
            code = _fedbias(*first) or finished()
    if code or (code := _fedbias("compare", *outputs)):
        return code
    say(f"Files: {' and '.join(outputs)} (metrics.jsonl, summary.json, adapter/, ...: see docs/metrics-file.md).")
    return 0


@contextmanager
def beside(command: Sequence[str]) -> Iterator[Callable[[], int]]:
    """Run ``command`` in a process of its own meanwhile; it is asked to stop if the block ends before it does.

    Yields:
        What waits for it, shows what it has printed, and gives its exit code.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

        def finished() -> int:
            code = process.wait()
            for file, stream in ((out, sys.stdout), (err, sys.stderr)):
                file.seek(0)
                stream.write(file.read())
                stream.flush()
            return code

        try:
            yield finished
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _fedbias(*arguments: str) -> int:
    """One command of ``fedbias``, in this process."""
    from fedbias_plugin.cli.main import build_parser

    parsed = build_parser().parse_args(arguments)
    code: int = parsed.main(parsed)
    return code
