"""The console script ``fedbias``: one module a command.

The command modules import what they need when they run, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from fedbias_plugin import __version__
from fedbias_plugin.cli.pipes import READER_GONE, drop_unread_output, flush_output
from fedbias_plugin.errors import Stopped, UserError
from fedbias_plugin.flags import unknown_name
from fedbias_plugin.logs import log_to_stderr, print_error, quiet_libraries

COMMANDS = (
    *("quickstart", "run", "flower", "sweep", "patch", "unpatch", "evaluate", "compare", "report", "data", "doctor"),
    "wandb-workspace",
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`UserError` and that never guesses an abbreviated flag."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse does, but an unknown flag is an error with a suggestion."""
        parsed, unknown = super().parse_known_args(args, namespace)
        for argument in unknown:
            if argument.startswith("--"):
                from fedbias_plugin.hosts.builtin.arguments import NOT_HERE

                known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
                raise unknown_name(argument[2:].split("=")[0], known, NOT_HERE, "command line")
        return parsed, unknown


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command; each module adds its own."""
    parser = Parser(
        prog="fedbias",
        description="Social bias in federated fine-tuning: poison clients, measure, aggregate with BAMA.",
    )
    parser.add_argument("--version", action="version", version=f"fedbias {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"fedbias_plugin.cli.{name.replace('-', '_')}").add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 2 on wrong input, 128 and its number where a signal stopped it (Ctrl-C: 130; a reader of its
        output that has gone, as in ``| head``: 141), 1 for what a command says of itself.
    """
    log_to_stderr()
    quiet_libraries()
    try:
        try:
            parsed = build_parser().parse_args(arguments)
            return parsed.main(parsed)
        except UserError as error:
            print_error(error)
            return 2
        except Stopped as stopped:
            print(f"fedbias: stopped by {stopped}.", file=sys.stderr)
            return 128 + stopped.signal_number
        except KeyboardInterrupt:
            print("fedbias: stopped.", file=sys.stderr)
            return 130
        finally:
            flush_output()
    except BrokenPipeError:
        if not drop_unread_output():
            raise
        return READER_GONE
