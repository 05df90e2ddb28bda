"""``fedbias run``: the built-in federated loop."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.cli.flags import add_flags, build, field_types, read_config, read_yaml
from fedbias_plugin.hosts.builtin.arguments import NOT_HERE, HostArguments

logger = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add ``run`` with every flag of the host and of the plugin."""
    parser = commands.add_parser(
        "run",
        help="fine-tune across poisoned clients and measure the bias of every round",
        description="Federated fine-tuning on the built-in host. The command line wins over --config.",
    )
    parser.add_argument("--config", help="YAML file with the same names, one flag a line")
    add_flags(parser, HostArguments, BiasArguments)
    parser.set_defaults(main=main)


def main(parsed: argparse.Namespace) -> int:
    """Resolve the flags, then hand over to the loop."""
    host, bias = resolve_arguments(parsed)
    from fedbias_plugin.hosts.builtin.loop import run

    run(host, bias)
    return 0


def resolve_arguments(parsed: argparse.Namespace) -> tuple[HostArguments, BiasArguments]:
    """The two argument objects: command line over ``--config`` over what the bundled model recommends.

    Raises:
        UserError: an unknown name, a value of the wrong type or out of range.
    """
    names = [*field_types(HostArguments), *field_types(BiasArguments)]
    command_line = {name: getattr(parsed, name) for name in names if hasattr(parsed, name)}
    from_file = read_config(parsed.config, (HostArguments, BiasArguments), NOT_HERE) if parsed.config else {}
    written = from_file | command_line
    layers = [(f"--config {parsed.config}", from_file), ("command line", command_line)]
    if written.get("model_name_or_path", "tiny") == "tiny":
        recommended = {name: value for name, value in tiny_recommendations().items() if name not in written}
        if recommended:
            listed = ", ".join(f"{name}={value}" for name, value in recommended.items())
            logger.info("model tiny: recommended settings for flags not given: %s", listed)
        layers.insert(0, ("recommended.yaml", recommended))
    return build(HostArguments, layers), build(BiasArguments, layers)


def tiny_recommendations() -> dict[str, Any]:
    """Flags that suit the bundled model, from the file beside it."""
    return read_yaml(str(TINY_MODEL / "recommended.yaml"))
