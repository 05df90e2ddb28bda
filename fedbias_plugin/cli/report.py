"""``fedbias report DIR...``: the report of a study, as a page, Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``report`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "report",
        help="figures and tables of a study as one page",
        description=(
            "Write the report of a study from the metrics.jsonl of its runs: one HTML page that needs no network, the "
            "same as Markdown with pictures, and every table as CSV and LaTeX."
        ),
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="folder of a sweep, of a run, or one that holds runs")
    parser.add_argument("--output", metavar="DIR", help="folder to write; report/ in the first DIR when absent")
    parser.add_argument(
        "--study",
        metavar="FILE",
        help="what the study asks and shows; when absent study.yaml in a DIR, else that of the experiment swept there, "
        "else the paper's",
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Write the report of ``args.folders`` and say where its page is.

    Raises:
        UserError: as :func:`fedbias_plugin.study.report.write_report`.
    """
    from fedbias_plugin.errors import printable
    from fedbias_plugin.study.report import write_report
    from fedbias_plugin.terminal import say

    def tell(line: str) -> None:
        print(printable(line), file=sys.stderr, flush=True)

    page = write_report(args.folders, args.output, tell, args.study)
    say(printable(f"written: {page}, with report.md, figures/ and tables/ beside it"))
    return 0
