"""Every extension by kind and name, as the text ``"module:Class"``: nobody imports a room to name what is in it.

An extension of somebody else's comes through an entry point of the group ``fedbias_plugin.KIND``, in their setup.py:
``entry_points={"fedbias_plugin.rule": ["mine = my_package.mine:Mine"]}``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import typing
from typing import Any

from fedbias_plugin.errors import UserError, did_you_mean
from fedbias_plugin.options import Matter, Option, options

EXTENSIONS: dict[str, dict[str, str]] = {
    "flags": {
        "plugin": "fedbias_plugin.arguments:BiasArguments",
        "builtin": "fedbias_plugin.hosts.builtin.arguments:HostArguments",
        "openfedllm": "fedbias_plugin.hosts.openfedllm.arguments:AttachedArguments",
    },
    "rule": {
        "plain": "fedbias_plugin.aggregation.plain:Plain",
        "bama": "fedbias_plugin.aggregation.bama:Bama",
        "median": "fedbias_plugin.aggregation.median:Median",
        "trimmed_mean": "fedbias_plugin.aggregation.trimmed_mean:TrimmedMean",
        "krum": "fedbias_plugin.aggregation.krum:Krum",
        "multi_krum": "fedbias_plugin.aggregation.krum:MultiKrum",
        "norm_clip": "fedbias_plugin.aggregation.norm_clip:NormClip",
    },
    "attack": {
        "sign_flip": "fedbias_plugin.updates.attacks:SignFlip",
        "model_replacement": "fedbias_plugin.updates.attacks:ModelReplacement",
        "gaussian_noise": "fedbias_plugin.updates.attacks:GaussianNoise",
        "probe_gaming": "fedbias_plugin.updates.attacks:ProbeGaming",
    },
    "stage": {
        "checks": "fedbias_plugin.updates.checks:Checks",
    },
    "tracker": {
        "jsonl": "fedbias_plugin.tracking.jsonl:JsonlTracker",
        "wandb": "fedbias_plugin.tracking.wandb_tracker:WandbTracker",
        "tensorboard": "fedbias_plugin.tracking.tensorboard_tracker:TensorboardTracker",
    },
}
"""Kind -> name -> where the class is."""
CHOSEN_BY = {"rule": "aggregation", "attack": "attack", "stage": None, "tracker": "track"}
"""Kind whose classes have flags of their own -> the flag that names the extension; None: its own flags switch it on."""
OLD_NAMES = {"rule": {"host": "plain"}}
"""Kind -> a name of earlier versions -> today's."""


def names(kind: str) -> tuple[str, ...]:
    """The names of a kind, the package's own first."""
    return (*EXTENSIONS[kind], *(name for name in _entry_points(kind) if name not in EXTENSIONS[kind]))


def todays_name(kind: str, name: str) -> str:
    """``plain`` for ``host``, the rule's name in earlier versions; other names as they are."""
    return OLD_NAMES.get(kind, {}).get(name, name)


def load(kind: str, name: str) -> Any:
    """The class of an extension.

    Raises:
        UserError: no such name, with the nearest one; or an outsider's extension that cannot be imported.
    """
    name = todays_name(kind, name)
    place = EXTENSIONS[kind].get(name) or _entry_points(kind).get(name)
    if place is None:
        raise UserError(
            f"{name!r} is no {kind}; choose one of {', '.join(names(kind))}.{did_you_mean(name, names(kind))}"
        )
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        if name in EXTENSIONS[kind]:
            raise
        raise UserError(f"The {kind} {name!r} ({place}) of another package cannot be used: {error}.") from error


def build(kind: str, name: str, arguments: Any) -> Any:
    """The extension ``name`` with its flags from ``arguments``.

    Raises:
        UserError: as :func:`load`.
    """
    cls = load(kind, name)
    return cls(**{flag: getattr(arguments, flag) for flag in options(cls)})


def with_extensions(core: type, name: str) -> type:
    """A dataclass ``name`` with the flags of ``core`` and of every extension.

    A flag that only some extensions of a kind have is read with those only: that is what ``--help``, warnings and
    comparisons know of it. Extensions may share a flag if they define it alike.

    Raises:
        UserError: a flag of an extension means something else already; both are named.
    """
    defined: dict[str, tuple[str, Option | None]] = {
        spec.name: ("the plugin", None) for spec in dataclasses.fields(core)
    }
    specs: dict[str, tuple[str, Any, Any]] = {}
    for kind, selector in CHOSEN_BY.items():
        owners: dict[str, list[str]] = {}
        for extension in names(kind):
            cls = load(kind, extension)
            hints = typing.get_type_hints(cls)
            for flag, about in options(cls).items():
                owner, before = defined.setdefault(flag, (f"the {kind} {extension!r}", about))
                if before != about:
                    raise UserError(
                        f"The {kind} {extension!r} has a flag --{flag}, and {owner} has one of that name that means "
                        "something else; its author must rename it, and until then uninstall its package."
                    )
                owners.setdefault(flag, []).append(extension)
                if selector is not None:
                    about = dataclasses.replace(about, read_when={selector: tuple(owners[flag])})
                default = next(spec.default for spec in dataclasses.fields(cls) if spec.name == flag)
                made = dataclasses.field(default=default, metadata={"help": about.help, "option": about})
                specs[flag] = (flag, hints[flag], made)
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


@functools.cache
def _entry_points(kind: str) -> dict[str, str]:
    return {point.name: point.value for point in importlib.metadata.entry_points(group=f"fedbias_plugin.{kind}")}
