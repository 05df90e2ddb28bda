"""``fedbias quickstart``: the bundled small world with FedAvg and with FedAvg + BAMA, side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fedbias_plugin.errors import UserError
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
    """Both runs in ``folder`` and their comparison.

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
    for output, aggregation in outputs.items():
        own = ["--config", "quickstart", "--aggregation", aggregation, "--output_dir", output]
        if code := _fedbias("run", *own, *flags):
            return code
    if code := _fedbias("compare", *outputs):
        return code
    say(f"Files: {' and '.join(outputs)} (metrics.jsonl, summary.json, adapter/, ...: see docs/metrics-file.md).")
    return 0


def _fedbias(*arguments: str) -> int:
    """One command of ``fedbias``, in this process."""
    from fedbias_plugin.cli.main import build_parser

    parsed = build_parser().parse_args(arguments)
    code: int = parsed.main(parsed)
    return code
