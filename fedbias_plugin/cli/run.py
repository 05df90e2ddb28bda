"""``fedbias run``: the built-in federated loop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.configs_folder import RUNS, config_names
from fedbias_plugin.flags import add_flags, given_flags
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.hosts.builtin.start import arguments_of, config_values, resume_run, start
from fedbias_plugin.terminal import say


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``run`` with every flag of the host and of the plugin."""
    parser = commands.add_parser(
        "run",
        help="fine-tune across poisoned clients and measure the bias of every round",
        description="Federated fine-tuning on the built-in host. The command line wins over --config.",
    )
    ours = ", ".join(config_names(RUNS))
    parser.add_argument("--config", help=f"YAML file with the same names, one flag a line, or one of ours: {ours}")
    parser.add_argument(
        "--resume",
        metavar="OUTPUT",
        help="go on with the run in this folder after its last finished round; the flags are those it began with, and "
        "one that is given again must say the same",
    )
    add_flags(parser, HostArguments, BiasArguments)
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Resolve the flags, hand over to the loop, say where the results are."""
    if parsed.resume is None:
        say_finished(start(*resolve_arguments(parsed)))
        return 0
    written = config_values(parsed.config) | command_line_values(parsed)
    output, went_on = resume_run(parsed.resume, written, "command line")
    if went_on:
        say_finished(output)
    else:
        say(f"{parsed.resume} is finished: there is nothing to go on with.")
    return 0


def say_finished(output: Path) -> None:
    """Where the results are."""
    model = next(name for name in ("adapter", "model") if (output / name).is_dir())
    say(f"finished: {output} holds metrics.jsonl, summary.json and {model}/")


def resolve_arguments(parsed: argparse.Namespace) -> tuple[HostArguments, BiasArguments]:
    """The two argument objects: command line over ``--config`` over what the bundled model recommends.

    Raises:
        UserError: an unknown name, a value of the wrong type or out of range, or flags that contradict each other.
    """
    return arguments_of(config_values(parsed.config), command_line_values(parsed), parsed.config)


def command_line_values(parsed: argparse.Namespace) -> dict[str, Any]:
    """The flags on the command line, by name."""
    return given_flags(parsed, HostArguments, BiasArguments)
