"""``fedbias compare DIR DIR...``: bias curves of finished or running experiments side by side."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``compare`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "compare",
        help="bias curves of runs side by side",
        description="Show the bias of every round of several runs side by side, from their metrics.jsonl alone.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="output_dir of a run")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Print the comparison of ``args.folders``.

    Raises:
        UserError: a folder holds no readable run.
    """
    from fedbias_plugin.errors import printable
    from fedbias_plugin.study.compare import compare
    from fedbias_plugin.terminal import width_of

    width = width_of(sys.stdout)
    print(printable(compare(args.folders, ascii_only=not _draws_unicode(), width=width)), end="")
    return 0


def _draws_unicode() -> bool:
    """Whether the standard output can hold the characters of the bars."""
    try:
        "█·│–".encode(sys.stdout.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
