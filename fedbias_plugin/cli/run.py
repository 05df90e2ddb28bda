"""``fedbias run``: the built-in federated loop."""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.configs_folder import RUNS, config_names, find_config
from fedbias_plugin.errors import UserError
from fedbias_plugin.files import disk_errors_named
from fedbias_plugin.flags import add_flags, build, field_types, read_config
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments
from fedbias_plugin.hosts.builtin.resolve import resolve
from fedbias_plugin.options import idle_flags, options
from fedbias_plugin.terminal import say

logger = logging.getLogger(__name__)


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
    if parsed.resume is not None:
        return resume(parsed)
    host, bias = resolve_arguments(parsed)
    check_stack()
    check_one_process()
    from fedbias_plugin.hosts.builtin.loop import run

    say_finished(run(host, bias))
    return 0


def resume(parsed: argparse.Namespace) -> int:
    """``--resume``: find the last finished round in the folder and go on after it."""
    output = Path(parsed.resume)
    if not output.is_dir():
        raise UserError(
            f"--resume {parsed.resume}: {'that is a file' if output.exists() else 'there is no such folder'}."
        )
    check_stack()
    check_one_process()
    from fedbias_plugin.hosts.builtin.loop import run
    from fedbias_plugin.hosts.checkpoints import find_checkpoint, locked

    with disk_errors_named(output), locked(output):
        checkpoint = find_checkpoint(output, "--resume", "builtin")
        if checkpoint is None:
            if changed_by(parsed):
                raise UserError(
                    f"{parsed.resume} is finished, and a finished run cannot be extended or changed (the learning rate "
                    f"follows --num_rounds); drop --{', --'.join(changed_by(parsed))}, or begin a new run."
                )
            say(f"{parsed.resume} is finished: there is nothing to go on with.")
            return 0
        host, bias = resumed_arguments(parsed, checkpoint.arguments)
        say_finished(run(host, bias, checkpoint))
    return 0


def changed_by(parsed: argparse.Namespace) -> list[str]:
    """Flags that are given beside ``--resume``, the folder's own aside."""
    return sorted((config_values(parsed) | command_line_values(parsed)).keys() - {"output_dir"})


def say_finished(output: Path) -> None:
    """Where the results are."""
    model = next(name for name in ("adapter", "model") if (output / name).is_dir())
    say(f"finished: {output} holds metrics.jsonl, summary.json and {model}/")


def resumed_arguments(parsed: argparse.Namespace, stored: Mapping[str, Any]) -> tuple[HostArguments, BiasArguments]:
    """The arguments a run began with; flags that are given again must say the same, unless they move no number.

    Raises:
        UserError: naming the flags that have changed.
    """
    from fedbias_plugin.hosts.checkpoints import changed_arguments

    written = config_values(parsed) | command_line_values(parsed)
    if Path(written.get("output_dir", parsed.resume)).resolve() != Path(parsed.resume).resolve():
        raise UserError(f"--resume {parsed.resume} goes on in that folder; drop --output_dir.")
    layers = [("the checkpoint", stored), ("command line", {**written, "output_dir": parsed.resume})]
    host, bias = build(HostArguments, layers), build(BiasArguments, layers)
    given = {name: value for part in (host, bias) for name, value in vars(part).items() if name in written}
    changed = changed_arguments(stored, given)
    if changed:
        raise UserError(
            f"A run goes on as it began. Changed: {', '.join(changed)}. Drop what has changed, or begin a new run."
        )
    return host, bias


def check_stack() -> None:
    """Refuse an old Transformers before it fails in the middle of something.

    Raises:
        UserError: naming the version found and the line that mends it.
    """
    version = importlib.metadata.version("transformers")
    if int(version.split(".")[0]) < 5:
        raise UserError(
            f"fedbias run needs transformers 5 or newer, and {version} is installed: pip install -U 'transformers>=5'."
        )


def check_one_process() -> None:
    """Refuse a launcher that started several processes: each would train on a part of every client's rows.

    Raises:
        UserError: saying what several processes can do.
    """
    from fedbias_plugin.evaluation.processes import launched

    if launched() > 1:
        raise UserError(
            f"fedbias run trains in one process, and a launcher started {launched()}. Several processes can share the "
            "scoring of one model: accelerate launch -m fedbias_plugin evaluate ..."
        )


def resolve_arguments(parsed: argparse.Namespace) -> tuple[HostArguments, BiasArguments]:
    """The two argument objects: command line over ``--config`` over what the bundled model recommends.

    Raises:
        UserError: an unknown name, a value of the wrong type or out of range, or flags that contradict each other.
    """
    from_file, command_line = config_values(parsed), command_line_values(parsed)
    host, bias, recommended = resolve([(f"--config {parsed.config}", from_file), ("command line", command_line)])
    if recommended:
        listed = ", ".join(f"{name}={value}" for name, value in recommended.items())
        logger.info("model tiny: recommended settings for flags not given: %s", listed)
    known, values = options(HostArguments, BiasArguments), {**vars(host), **vars(bias)}
    for name, needed in idle_flags(known, values, from_file | command_line):
        logger.warning("--%s has no effect %s.", name, needed)
    return host, bias


def config_values(parsed: argparse.Namespace) -> dict[str, Any]:
    """What ``--config`` holds; empty without it."""
    if not parsed.config:
        return {}
    path = find_config(RUNS, parsed.config, "--config")
    return read_config(str(path), (HostArguments, BiasArguments), NOT_HERE)


def command_line_values(parsed: argparse.Namespace) -> dict[str, Any]:
    """The flags on the command line, by name."""
    names = [*field_types(HostArguments), *field_types(BiasArguments)]
    return {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
