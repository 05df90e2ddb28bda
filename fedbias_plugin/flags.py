"""Flags from dataclasses: command line over YAML over recommended values over defaults; or keywords of Python.

Boolean flags work as in OpenFedLLM: ``--use_peft`` alone means true, ``--use_peft false`` is understood.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fedbias_plugin.errors import UserError, did_you_mean, first_line, quoted
from fedbias_plugin.names import check_name
from fedbias_plugin.options import shown_help

D = TypeVar("D")
TRUE, FALSE = {"true", "yes", "1"}, {"false", "no", "0"}
LARGEST_CONFIG = 100_000
"""Bytes of a file of flags; Python's YAML parser takes a second for some times as many."""
DEEPEST_CONFIG = 8


def field_types(cls: type) -> dict[str, tuple[type, bool]]:
    """Field name -> (type, may be None) of a dataclass of str, int, float and bool fields."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        arguments = [part for part in typing.get_args(hint) if part is not types.NoneType]
        found[name] = (arguments[0], True) if arguments else (hint, False)
    return found


def convert(flag: str, value: Any, kind: type, optional: bool, where: str) -> Any:
    """``value`` from YAML or the command line as ``kind``.

    Raises:
        UserError: it does not fit; the message names ``flag`` and ``where`` it was written.
    """
    if value is None and optional:
        return None
    try:
        converted = _as(kind, value)
    except (TypeError, ValueError, OverflowError):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise UserError(f"{flag} {quoted(value)} ({where}) must be {names[kind]}.") from None
    return check_name(converted, f"{flag} ({where}):") if kind is str else converted


def _as(kind: type, value: Any) -> Any:
    """``value`` as ``kind``; raises TypeError, ValueError or OverflowError where it is none."""
    if value is None:
        raise TypeError("nothing is given")
    if kind is bool:
        word = str(value).lower()
        if word not in TRUE | FALSE:
            raise ValueError("neither true nor false")
        return word in TRUE
    if kind is str:
        return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
    if isinstance(value, bool):
        raise TypeError("true and false are no numbers")
    number = kind(value)
    if kind is int and float(value) != number:
        raise ValueError("not a whole number")
    return number


def add_flags(
    parser: argparse.ArgumentParser, *classes: type, without: Collection[str] = (), shows_defaults: bool = True
) -> None:
    """One flag for every field of every dataclass but those in ``without``, with its help text and default.

    Raises:
        UserError: two of them have a flag of one name.
    """
    names = [spec.name for cls in classes for spec in dataclasses.fields(cls) if spec.name not in without]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"--{', --'.join(twice)}: an extension of another package has a flag of a name that is taken; its author "
            "must rename it, and until then uninstall its package."
        )
    for cls in classes:
        group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
        kinds = field_types(cls)
        for spec in (spec for spec in dataclasses.fields(cls) if spec.name not in without):
            kind, _ = kinds[spec.name]
            text = shown_help(spec).replace("%", "%%")
            group.add_argument(
                f"--{spec.name}",
                default=argparse.SUPPRESS,
                nargs="?" if kind is bool else None,
                const="true" if kind is bool else None,
                metavar={bool: "BOOL", int: "N", float: "X", str: "TEXT"}[kind],
                help=text if spec.default is None or not shows_defaults else f"{text} (default: {spec.default})",
            )


def read_yaml(path: str, flag: str = "--config") -> dict[str, Any]:
    """What a YAML file holds, names and values; in a file of flags flat: ``num_rounds: 5``.

    Args:
        path: the file.
        flag: how the user named it, for errors.

    Raises:
        UserError: no such file, no valid YAML (line named), or not a mapping of names to values.
    """
    import yaml

    try:
        with open(path, "rb") as stream:
            content = stream.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise UserError(f"{flag} {path} has more than {LARGEST_CONFIG:,} bytes: is it a file of flags?")
        text = content.decode("utf-8-sig")
        _check_structure(yaml, text, f"{flag} {path}")
        data = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"{flag} {path}: there is no such file.") from None
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{flag} {path}{place} cannot be read: {error.problem or error.context}.") from None
    except Exception as error:  # its makers of numbers, dates and the like raise errors of every kind
        raise UserError(f"{flag} {path} cannot be read: {first_line(error)}.") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{flag} {path} must hold names and values, one a line, such as `num_rounds: 5`.")
    return data


def _check_structure(yaml: Any, text: str, where: str) -> None:
    """Refuse what a flat file of flags has no use for: aliases, which can stand for billions of values, and depth.

    Raises:
        UserError: naming the line.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"{where}, line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{line}: *{event.anchor} is an alias; write the value itself.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEEPEST_CONFIG:
            raise UserError(f"{line}: nested too deeply.")


def unknown_name(name: str, known: Sequence[str], not_here: Mapping[str, str], where: str) -> UserError:
    """The error for a flag nobody knows, with what was probably meant."""
    if name in not_here:
        return UserError(f"{where}: OpenFedLLM's --{name} is not a flag here; {not_here[name]}.")
    hint = did_you_mean(name, known) or " See --help for all names."
    return UserError(f"{where}: unknown name {quoted(name)}.{hint}")


def check_names(names: Iterable[str], classes: Sequence[type], not_here: Mapping[str, str], where: str) -> None:
    """Raise :func:`unknown_name` for the first that is no field of ``classes``."""
    known = [name for cls in classes for name in field_types(cls)]
    for name in names:
        if name not in known:
            raise unknown_name(name, known, not_here, where)


def read_config(path: str, classes: Sequence[type], not_here: Mapping[str, str]) -> dict[str, Any]:
    """:func:`read_yaml`, with every name checked against the fields of ``classes``."""
    values = read_yaml(path)
    check_names(values, classes, not_here, f"--config {path}")
    return values


def given_flags(parsed: argparse.Namespace, *classes: type) -> dict[str, Any]:
    """Those of the flags of :func:`add_flags` that are on the command line, by name."""
    return {name: getattr(parsed, name) for cls in classes for name in field_types(cls) if hasattr(parsed, name)}


def build(cls: type[D], layers: Sequence[tuple[str, Mapping[str, Any]]]) -> D:
    """An instance of ``cls`` from named layers of values, the later winning; other names in them are left alone.

    Raises:
        UserError: a value of the wrong type (the layer is named), or what ``cls`` refuses.
    """
    given = {}
    for where, values in layers:
        for name, (kind, optional) in field_types(cls).items():
            if name in values:
                given[name] = convert(f"--{name}", values[name], kind, optional, where)
    return cls(**given)


def known_keywords(
    where: str, given: Mapping[str, Any], classes: Sequence[type], not_here: Mapping[str, str]
) -> dict[str, Any]:
    """``given`` with every name checked against the flags of ``classes``; a tuple becomes a list.

    Args:
        where: the call, for errors.
        given: keyword -> value.
        classes: dataclasses of flags.
        not_here: a name that is no flag of these -> what to do instead.

    Raises:
        UserError: an unknown name, with what was probably meant.
    """
    check_names(given, classes, not_here, where)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


@contextmanager
def named_as_keywords() -> Iterator[None]:
    """Errors about flags name them without their dashes: ``aggregation 'bamma' is unknown``."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"--(?=[a-z])", "", str(error))) from None
