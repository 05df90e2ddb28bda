"""Which flags there are: the plugin's and the hosts' own, and those that extensions bring with them."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import Matter, Option, options
from fedbias_plugin.registry import CHOSEN_BY, EXTENSIONS, load, names


def with_extensions(
    core: type, name: str, *, of_host: bool = False, kinds: Sequence[str] = tuple(CHOSEN_BY), of_runs: bool = True
) -> type:
    """A dataclass ``name`` with the flags of ``core`` and of every extension.

    A flag that only some extensions of a kind have is read with those only: that is what ``--help``, warnings and
    comparisons know of it; an extension's own ``read_when`` stands. Extensions may share a flag if they define it
    alike.

    Args:
        core: the dataclass to add to.
        name: of the new one.
        of_host: take the flags that OpenFedLLM has too, instead of those that are the plugin's alone.
        kinds: of extensions.
        of_runs: take the flags that only a run reads, and those of extensions that need not be named.

    Raises:
        UserError: a flag of an extension means something else already; both are named.
    """
    defined: dict[str, tuple[str, Option | None]] = {
        spec.name: ("the plugin", None) for spec in dataclasses.fields(core)
    }
    specs: dict[str, tuple[str, Any, Any]] = {}
    owners: dict[tuple[str, str], list[str]] = {}
    extensions = [(kind, extension) for kind in kinds for extension in names(kind)]
    # The package's own first: of two flags of one name, an outsider's is the one to be renamed.
    for kind, extension in sorted(extensions, key=lambda place: place[1] not in EXTENSIONS[place[0]]):
        cls, selector = load(kind, extension), CHOSEN_BY[kind]
        for flag, about in options(cls).items():
            if about.of_host != of_host or not (of_runs or (cls.is_named and flag not in cls.of_runs)):
                continue
            owner, before = defined.setdefault(flag, (f"the {kind} {extension!r}", about))
            if before != about:
                raise UserError(
                    f"The {kind} {extension!r} has a flag --{flag}, and {owner} has one of that name that means "
                    "something else; its author must rename it, and until then uninstall its package."
                )
            owners.setdefault((kind, flag), []).append(extension)
            if selector is not None and cls.is_named and about.read_when is None:
                about = dataclasses.replace(about, read_when={selector: tuple(owners[kind, flag])})
            default = next(spec.default for spec in dataclasses.fields(cls) if spec.name == flag)
            made = dataclasses.field(default=default, metadata={"help": about.help, "option": about})
            specs[flag] = (flag, _hints(cls)[flag], made)
    made = dataclasses.make_dataclass(name, list(specs.values()), bases=(core,))
    made.__doc__, made.__module__ = core.__doc__, core.__module__
    return made


@functools.cache
def all_options() -> dict[str, Option]:
    """Flag -> what it is, of the plugin and of every host."""
    return options(*(load("flags", name) for name in names("flags")))


@functools.cache
def flags_for(*matters: Matter) -> frozenset[str]:
    """The flags that matter to one of ``matters`` (:data:`fedbias_plugin.options.Matter`)."""
    return frozenset(name for name, about in all_options().items() if about.matters in matters)


@functools.cache
def free_to_change() -> frozenset[str]:
    """The flags that a resumed run may change: they move no number, or are compared by what they hold."""
    return frozenset(name for name, about in all_options().items() if about.may_change)


# The hints of a class once for all its names.
_hints = functools.cache(typing.get_type_hints)
