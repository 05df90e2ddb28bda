"""``fedbias flower``: the rounds of ``fedbias run`` with clients on the nodes of a Flower federation."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import add_flags, given_flags
from fedbias_plugin.hosts.builtin.start import FLAGS, config_values
from fedbias_plugin.hosts.flower.arguments import FlowerArguments
from fedbias_plugin.terminal import say


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``flower run`` with every flag of ``run``, and ``flower new``."""
    parser = commands.add_parser("flower", help="train across machines: clients on the nodes of a Flower federation")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run = actions.add_parser(
        "run",
        help="run a federation; without --federation on this machine",
        description="The rounds of fedbias run, with its flags, data, weights and records; SuperNodes train.",
    )
    run.add_argument("--federation", metavar="NAME", help="a SuperLink connection in Flower's config.toml")
    run.add_argument("--supernodes", metavar="N", type=int, help="without --federation: SuperNodes; one a client")
    run.add_argument("--config", help="YAML file of flags, or one of ours, as for fedbias run")
    run.add_argument("--resume", metavar="OUTPUT", help="go on with the run in this folder of the server")
    add_flags(run, FlowerArguments, *FLAGS)
    run.set_defaults(main=main_run)
    new = actions.add_parser("new", help="write a Flower app folder, for flwr run")
    new.add_argument("folder", metavar="DIR")
    new.add_argument("--config", help="YAML file of flags to write into the app's configuration")
    add_flags(new, FlowerArguments, *FLAGS)
    new.set_defaults(main=main_new)


def main_new(parsed: argparse.Namespace) -> int:
    """Write the folder and say how it is run."""
    from fedbias_plugin.hosts.flower.app_folder import make_app_folder

    make_app_folder(Path(parsed.folder), _given(parsed))
    say(f"{parsed.folder} is a Flower app. To run it: flwr run {parsed.folder} NAME --stream")
    return 0


def main_run(parsed: argparse.Namespace) -> int:
    """Check the flags, start what is to be started, run, and say where the results are."""
    from fedbias_plugin.hosts.flower.launch import run_embedded, run_on

    check_flower()
    given = _given(parsed)
    if parsed.resume is not None:
        given["resume"] = str(Path(parsed.resume).absolute()) if parsed.federation is None else parsed.resume
    if parsed.federation is not None:
        if parsed.supernodes is not None:
            raise UserError("--supernodes is for a federation on this machine; --federation has its own.")
        return run_on(parsed.federation, given)
    return run_embedded(given, parsed.supernodes)


def check_flower() -> None:
    """Refuse to go on without Flower.

    Raises:
        UserError: it is not installed, or this Python is too old for it.
    """
    if sys.version_info < (3, 11):
        raise UserError("Flower needs Python 3.11 or newer; the other hosts run on 3.10.")
    if importlib.util.find_spec("flwr") is None:
        raise UserError("Flower is not installed: pip install 'fedbias_plugin[flower]'.")


def _given(parsed: argparse.Namespace) -> dict[str, Any]:
    """The flags that were given, in the file or on the command line."""
    return config_values(parsed.config) | given_flags(parsed, FlowerArguments, *FLAGS)
