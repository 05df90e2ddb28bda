"""Flags from dataclasses: command line over YAML over recommended values over defaults.

Boolean flags work as in OpenFedLLM: ``--use_peft`` alone means true, ``--use_peft false`` is understood.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fedbias_plugin.errors import UserError, did_you_mean

D = TypeVar("D")
TRUE, FALSE = {"true", "yes", "1"}, {"false", "no", "0"}


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
        return _as(kind, value)
    except (TypeError, ValueError, OverflowError):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise UserError(f"{flag} {value!r} ({where}) must be {names[kind]}.") from None


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


def add_flags(parser: argparse.ArgumentParser, *classes: type) -> None:
    """One flag for every field of every dataclass, with its help text and default."""
    for cls in classes:
        group = parser.add_argument_group((cls.__doc__ or cls.__name__).splitlines()[0].rstrip("."))
        kinds = field_types(cls)
        for spec in dataclasses.fields(cls):
            kind, _ = kinds[spec.name]
            text = spec.metadata.get("help", "").replace("%", "%%")
            group.add_argument(
                f"--{spec.name}",
                default=argparse.SUPPRESS,
                nargs="?" if kind is bool else None,
                const="true" if kind is bool else None,
                metavar={bool: "BOOL", int: "N", float: "X", str: "TEXT"}[kind],
                help=text if spec.default is None else f"{text} (default: {spec.default})",
            )


def read_yaml(path: str) -> dict[str, Any]:
    """The flags of a YAML file, flat: ``num_rounds: 5``.

    Raises:
        UserError: no such file, no valid YAML (line named), or not a mapping of names to values.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--config {path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"--config {path} must hold one flag a line, such as `num_rounds: 5`.")
    return data


def unknown_name(name: str, known: Sequence[str], not_here: Mapping[str, str], where: str) -> UserError:
    """The error for a flag nobody knows, with what was probably meant."""
    if name in not_here:
        return UserError(f"{where}: OpenFedLLM's --{name} is not a flag here; {not_here[name]}.")
    hint = did_you_mean(name, known) or " See --help for all names."
    return UserError(f"{where}: unknown name {name!r}.{hint}")


def read_config(path: str, classes: Sequence[type], not_here: Mapping[str, str]) -> dict[str, Any]:
    """:func:`read_yaml`, with every name checked against the fields of ``classes``."""
    values = read_yaml(path)
    known = [name for cls in classes for name in field_types(cls)]
    for name in values:
        if name not in known:
            raise unknown_name(name, known, not_here, f"--config {path}")
    return values


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
