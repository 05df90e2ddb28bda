"""Flags beside what they steer: a field of a dataclass that knows its range, its choices and what it matters to.

The fields are plain strings and numbers, so that any parser of dataclasses can read them. Which flags are idle, which
make two runs differ, which a resumed run may change: all of it is asked of the fields here, and written nowhere else.
Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from fedbias_plugin.errors import UserError, did_you_mean

Matter = Literal["numbers", "measuring", "seed", "speed", "machine", "tracking"]
"""What a flag matters to.

- ``numbers``: what the run gives.
- ``measuring``: what is measured on the way; no final score.
- ``seed``: which draw of the same experiment.
- ``speed``: time, memory, or what becomes of a run that fails.
- ``machine``: where and how a run works; equal runs on two machines differ in it.
- ``tracking``: where the numbers go.
"""


@dataclass(frozen=True)
class Option:
    """What a flag is, beside its type and its default.

    Attributes:
        help: one line for ``--help``, without the choices.
        default: its value where it is not given.
        choices: the values it may have, or a function that gives them.
        many: whether it holds several of them, with commas.
        above, at_least, at_most: its range; None where there is no limit.
        read_when: another flag -> its values with which this one is read; None stands for "not given".
        unread_when: another flag -> its values with which this one is not read.
        read_with: flags of which one must be given for this one to be read.
        warns: whether giving it where it is not read deserves a warning.
        matters: see :data:`Matter`.
        may_change: whether a resumed run may have another value.
        of_host: whether OpenFedLLM has the flag too: in a patched checkout it is the host's.
    """

    help: str
    default: Any = None
    choices: Sequence[str] | Callable[[], Sequence[str]] | None = None
    many: bool = False
    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    read_when: Mapping[str, tuple[Any, ...]] | None = None
    unread_when: Mapping[str, tuple[Any, ...]] | None = None
    read_with: tuple[str, ...] = ()
    warns: bool = True
    matters: Matter = "numbers"
    may_change: bool = False
    of_host: bool = False

    @property
    def known(self) -> tuple[str, ...]:
        """The choices, none for a flag that may be anything."""
        return tuple(self.choices() if callable(self.choices) else self.choices or ())

    def is_read(self, values: Mapping[str, Any]) -> bool:
        """Whether a run with these flags reads this one; a flag that is absent from ``values`` decides nothing."""
        if self.is_alone(values):
            return False
        wanted, unwanted = (self.read_when or {}).items(), (self.unread_when or {}).items()
        return all(_matches(values[name], some) for name, some in wanted if name in values) and not any(
            _matches(values[name], some) for name, some in unwanted if name in values
        )

    def is_alone(self, values: Mapping[str, Any]) -> bool:
        """Whether none of the flags is given with which it is read."""
        beside = [values[name] for name in self.read_with if name in values]
        return bool(beside) and all(value is None for value in beside)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value out of range or choices.

        Raises:
            UserError: naming the flag and what would be right.
        """
        if value is None:
            return
        if self.choices is not None:
            for part in split_list(value) if self.many else [value]:
                check_choice(name, part, self.known)
        low = self.above if self.above is not None else self.at_least
        if low is not None or self.at_most is not None:
            low = -math.inf if low is None else low
            high = math.inf if self.at_most is None else self.at_most
            check_range(name, value, low, high, open_low=self.above is not None)


def option(default: Any, help_text: str, **about: Any) -> Any:
    """A dataclass field that is a flag; ``about`` are the attributes of :class:`Option`."""
    return field(default=default, metadata={"help": help_text, "option": Option(help_text, default, **about)})


def options(*classes: type) -> dict[str, Option]:
    """Flag -> what it is, for the fields of those ``classes`` that are dataclasses."""
    specs = [spec for cls in classes if is_dataclass(cls) for spec in fields(cls)]
    return {spec.name: spec.metadata["option"] for spec in specs if "option" in spec.metadata}


def check_options(arguments: Any) -> None:
    """Check every flag of a dataclass by itself.

    Raises:
        UserError: the first that is out of range or choices.
    """
    for name, about in options(type(arguments)).items():
        about.check(name, getattr(arguments, name))


def idle_flags(
    known: Mapping[str, Option], values: Mapping[str, Any], written: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Those of the flags ``written`` by the user that change nothing in this run, each with what it needs.

    Args:
        known: flag -> what it is.
        values: every flag of the run.
        written: what the user gave.

    >>> known = {"clip_norm": Option("", read_when={"aggregation": ("norm_clip",)})}
    >>> list(idle_flags(known, {"aggregation": "bama"}, ["clip_norm"]))
    [('clip_norm', 'without --aggregation norm_clip')]
    """
    given = set(written)
    for name, about in known.items():
        if name in given and about.warns and not about.is_read(values):
            needed = [_needed(*pair) for pair in (about.read_when or {}).items() if _fails(values, *pair)]
            needed += [
                f"with --{other} {' or '.join(map(str, some))}"
                for other, some in (about.unread_when or {}).items()
                if other in values and _matches(values[other], some)
            ]
            needed += [f"without --{' or --'.join(about.read_with)}"] if about.is_alone(values) else []
            yield name, " and ".join(needed)


def shown_help(spec: Field[Any]) -> str:
    """The help text of a flag with its choices, as ``--help`` and docs/flags.md show it."""
    about: Option = spec.metadata["option"]
    return f"{about.help}; {'any' if about.many else 'one'} of {', '.join(about.known)}" if about.known else about.help


def check_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    """Raise :class:`UserError` with the nearest match when ``value`` is not one of ``choices``.

    A choice ``NAME:WHAT`` stands for every text that begins with ``NAME:`` and goes on.
    """
    choices = list(choices)
    first, _, given = value.partition(":")
    if (value in choices and ":" not in value) or (given and any(one.startswith(f"{first}:") for one in choices)):
        return
    raise UserError(f"--{flag} {value!r} is unknown; choose one of {', '.join(choices)}.{did_you_mean(value, choices)}")


def check_range(flag: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    """Raise :class:`UserError` when ``value`` is not a number in [low, high] (or (low, high] with ``open_low``)."""
    too_low = value <= low if open_low else value < low
    if math.isfinite(value) and not too_low and value <= high:
        return
    bound = f"{'greater than' if open_low else 'at least'} {low:.12g}"
    if math.isfinite(high):
        bound += f" and at most {high:.12g}"
    raise UserError(f"--{flag} must be {bound}, got {value}.")


def split_list(text: str) -> list[str]:
    """``"a, b"`` -> ``["a", "b"]``; an empty string or ``none`` is the empty list."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [] if parts == ["none"] else parts


def _matches(value: Any, wanted: Collection[Any]) -> bool:
    """Whether a value, or a part of one with commas, is among those wanted; ``NAME:WHAT`` where ``NAME`` is."""
    parts = split_list(value) if isinstance(value, str) else []
    return value in wanted or any(part in wanted or part.partition(":")[0] in wanted for part in parts)


def _fails(values: Mapping[str, Any], name: str, wanted: Collection[Any]) -> bool:
    return name in values and not _matches(values[name], wanted)


def _needed(name: str, wanted: Sequence[Any]) -> str:
    """What a flag needs, in words."""
    if tuple(wanted) == (None,):
        return f"beside --{name}"
    if tuple(wanted) == (True,):
        return f"without --{name}"
    shown = f"{wanted[0]} or another" if len(wanted) > 4 else " or ".join(map(str, wanted))
    return f"without --{name} {shown}"
