"""``fedbias wandb-workspace ENTITY/PROJECT``: a saved W&B workspace with the curves of a bias experiment."""

from __future__ import annotations

import argparse
from typing import Any

from fedbias_plugin.errors import printable
from fedbias_plugin.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add ``wandb-workspace`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "wandb-workspace",
        help="save a Weights & Biases workspace for bias experiments",
        description="Save a view in a W&B project: bias curves, clients with the poisoned ones marked, weights, bias "
        "types by round, held-out loss, time and memory; seeds of a setting are grouped.",
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT", help="user or team name and project")
    parser.add_argument("--name", default="", metavar="TEXT", help="name of the view (default: Bias by round)")
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="TAG",
        help="show only runs with this tag, such as table1 or scenario:1B2C; may be repeated",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print the sections and their panels; needs no login and sends nothing"
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Build the workspace, then print it or save it.

    Raises:
        UserError: no such name, no package, no login, no network, or what the server says.
    """
    from fedbias_plugin.tracking.wandb_workspace import (
        DEFAULT_NAME,
        build_workspace,
        outline,
        save_workspace,
        split_path,
    )

    entity, project = split_path(args.project)
    workspace = build_workspace(entity, project, args.name or " ".join([DEFAULT_NAME, *args.tag]), args.tag)
    if args.dry_run:
        say(printable("\n".join(outline(workspace))))
    else:
        print(f"saved: {save_workspace(workspace)}")
    return 0
