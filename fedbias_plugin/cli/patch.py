"""``fedbias patch DIR``: attach the plugin to an OpenFedLLM checkout."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.terminal import say

if TYPE_CHECKING:
    from fedbias_plugin.hosts.openfedllm.patcher import Plan


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

    plan = plan_patch(args.folder)
    if not args.check:
        plan.write()
    say("\n".join(_report(plan, args.check)))
    return 0


def _report(plan: Plan, check: bool) -> Iterator[str]:
    yield f"{plan.folder}: a checkout of the {plan.family} family"
    for script in plan.scripts:
        would = "would be " if check else ""
        state = f"{would}{'moved here' if script.is_moved else 'added'}" if script.changes else "there already"
        old = () if not script.is_entry or script.is_moved or not script.changes else script.before
        yield from (f"{script.name}:{number}: {would}removed: {line}" for number, line in old)
        for number, line in script.lines:
            yield f"{script.name}:{number}: {state if script.is_entry else f'{would}removed'}: {line}"
    yield from (f"Note: {note}" for note in plan.notes)
    yield _stack()
    folder = shlex.quote(str(plan.folder))
    if check and plan.changes:
        yield f"Not patched. It can be: fedbias patch {folder}"
        return
    yield "Patched." if plan.changes else "Patched already; nothing was changed."
    entry = next(script.name for script in plan.scripts if script.is_entry)
    change = "" if folder == "." else f"cd {folder} && "
    yield f"Next:    {change}python {entry} ... --aggregation bama"
    yield f"Undo it: fedbias unpatch {folder}"


def _stack() -> str:
    """One line on the libraries, or a warning about them: they do not matter for patching, but for the run."""
    from fedbias_plugin.hosts.openfedllm.stack import detect_stack, stack_versions

    try:
        stack = detect_stack()
    except UserError as error:
        return f"Warning: this Python has {error}"
    versions = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
    return f"This Python has the {stack} stack: {versions}"
