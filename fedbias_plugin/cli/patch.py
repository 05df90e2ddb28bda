"""``fedbias patch DIR``: attach the plugin to an OpenFedLLM checkout."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.terminal import say


def add_parser(subparsers: Any) -> None:
    """Add ``patch`` to the subcommands of ``fedbias``."""
    parser = subparsers.add_parser(
        "patch",
        help="attach the plugin to an OpenFedLLM checkout",
        description="Add the plugin's line to main_sft.py and main_dpo.py of an OpenFedLLM checkout. What a run would "
        "refuse is refused here. Exit code 0 when the checkout is patched (with "
        "--check: when it is or can be), 2 when it cannot be. `fedbias unpatch DIR` takes the line out again.",
    )
    parser.add_argument("folder", metavar="DIR", help="the checkout")
    parser.add_argument(
        "--check", action="store_true", help="only tell what is patched and what would be; write nothing"
    )
    parser.set_defaults(main=main)


def main(args: argparse.Namespace) -> int:
    """Patch ``args.folder`` and print what was done and how to go on.

    Raises:
        UserError: the checkout cannot be patched; nothing was written.
    """
    from fedbias_plugin.hosts.openfedllm.patcher import plan_patch
    from fedbias_plugin.hosts.openfedllm.stack import detect_stack, stack_versions

    plan = plan_patch(args.folder)
    if not args.check:
        plan.write()
    would = "would be " if args.check else ""
    lines = [f"{plan.folder}: a checkout of the {plan.family} family"]
    for script in plan.scripts:
        added = f"{would}{'moved here' if script.is_moved else 'added'}" if script.changes else "there already"
        removed = () if script.is_moved else script.removed
        lines += [f"{script.name}:{number}: {would}removed: {line}" for number, line in removed]
        lines += [f"{script.name}:{number}: {added}: {line}" for number, line in script.lines]
    lines += [f"Note: {note}" for note in plan.notes]
    try:
        versions = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
        lines.append(f"This Python has the {detect_stack()} stack: {versions}")
    except UserError as error:  # which does not matter for patching, but for the run
        lines.append(f"Warning: this Python has {error}")
    folder = shlex.quote(str(plan.folder))
    if args.check and plan.changes:
        lines.append(f"Not patched. It can be: fedbias patch {folder}")
    else:
        entry = next(script.name for script in plan.scripts if script.lines)
        change = "" if folder == "." else f"cd {folder} && "
        lines.append("Patched." if plan.changes else "Patched already; nothing was changed.")
        lines += [f"Next:    {change}python {entry} ... --aggregation bama", f"Undo it: fedbias unpatch {folder}"]
    say("\n".join(lines))
    return 0
