"""``fedbias unpatch DIR``: take the plugin out of an OpenFedLLM checkout."""

from __future__ import annotations

import argparse
from typing import Any

from fedbias_plugin.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add ``unpatch`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "unpatch",
        help="take the plugin out of an OpenFedLLM checkout",
        description="Remove what `fedbias patch` added, by any version, also after a formatter; every other byte "
        "stays, and so do your own changes. Exit code 0 when nothing of the plugin is left, 2 when one of its lines "
        "cannot be taken out by itself (nothing is written then).",
    )
    parser.add_argument("folder", metavar="DIR", help="the checkout")
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Take the plugin's lines out of ``args.folder`` and print them.

    Raises:
        UserError: no checkout, or a line of the plugin holds something else too; nothing was written.
    """
    from fedbias_plugin.hosts.openfedllm.patcher import plan_unpatch

    plan = plan_unpatch(args.folder)
    plan.write()
    for script in plan.scripts:
        for number, line in script.removed:
            say(f"{script.name}:{number}: removed: {line}")
    say(f"{plan.folder}: " + ("unpatched." if plan.changes else "holds no line of the plugin; nothing to do."))
    return 0
