"""Reading the JSON of records: each value of the type that it must have, or a ValueError that names its key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.errors import quoted
from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.registry import names

SCORES = (
    *("value", "ideal", "score", "ss", "lms", "icat", "n", "terms", "noise_floor", "standard_error", "tie_rate"),
    *("length_only", "shared_sentences", "loss", "perplexity", "guessing_loss", "f1", "max_new_tokens"),
)
"""Keys of a block that must be numbers, since something reads them."""
LARGEST_COUNT = 10**12
IDEAL = 50.0
MAIN_KEYS = {"score": IDEAL, "ss": IDEAL, "loss": None, "f1": None}
"""What stood for ``value`` in files of 0.1, by key, and the ideal of such a value."""


def read_numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """Every number of an object, those that are null left out."""
    found = {str(key): read_number(data, key) for key in data}
    return {key: value for key, value in found.items() if value is not None}


def read_number(data: Mapping[str, Any], key: str, *, required: bool = False) -> float | None:
    """A finite number, or None for null or nothing."""
    value = data.get(key)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{key!r} must be a number{'' if required else ' or null'}, found {quoted(value)}")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):  # JSON can spell 1e999
        raise ValueError(f"{key!r} is larger than any number")
    return found


def read_integer(data: Mapping[str, Any], key: str) -> int:
    """A whole number from 0 on."""
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < LARGEST_COUNT:
        raise ValueError(f"{key!r} must be a whole number from 0 on, found {quoted(value)}")
    return value


def read_object(data: Mapping[str, Any], key: str, *, required: bool = False) -> dict[str, Any] | None:
    """A mapping, or None for null or nothing."""
    value = data.get(key)
    if value is None and not required:
        return None
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} must be an object{'' if required else ' or null'}, found {quoted(value)}")
    return value


def read_metrics(data: Mapping[str, Any], besides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The objects in ``data``, which are the blocks of metrics, but those ``besides``."""
    known = names("metric")
    blocks = {
        name: read_block(read_object(data, name, required=True) or {})
        for name, value in data.items()
        if value is not None and name not in besides and (isinstance(value, dict) or name in known)
    }
    for name, block in blocks.items():
        parts = metric_class(name).categories(block)
        if not isinstance(parts, dict):
            raise ValueError(f"the categories of {name!r} must be an object, found {quoted(parts)}")
        for part in parts:
            check_block(read_object(parts, part, required=True) or {})
        _check_clients(name, block)
    return blocks


def _check_clients(name: str, block: dict[str, Any]) -> None:
    try:
        for own in metric_class(name).by_client(block).values():
            check_block(own)
            read_number(own, "value", required=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the clients of {name!r} must be objects by client id ({error})") from None


def check_block(block: dict[str, Any]) -> None:
    """Refuse what is no number, interval or text where something reads one, and numbers that are larger than any."""
    for key, value in block.items():
        if key.endswith("ci95"):
            read_check_interval(block, key)
        elif key in ("items", "ids_hash", "reduction"):
            read_text(block, key, "")
        elif key in SCORES or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            read_number(block, key)


def read_block(block: dict[str, Any]) -> dict[str, Any]:
    """A metric's block, checked; with what 0.1 did not write filled in."""
    check_block(block)
    for key in [key for key in ("full", "report", "probe") if key in block]:
        block[key] = read_block(read_object(block, key) or {})
    main = next((key for key in MAIN_KEYS if key in block), None)
    if main is None or "value" in block:
        return block
    value, ideal = block[main], MAIN_KEYS[main]
    block = {"value": value, "ideal": ideal, **block}
    if ideal is not None and block.get("noise_floor") is None and block.get("n"):
        block["noise_floor"] = ideal * math.sqrt(2 / (math.pi * block["n"]))
    if main == "loss" and value is not None:
        block["perplexity"] = block.get("perplexity") or (math.exp(value) if value < 700 else None)
    return block


def read_check_interval(data: Mapping[str, Any], key: str) -> None:
    bounds = data[key]
    if bounds is None:
        return
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise ValueError(f"{key!r} must be two numbers or null, found {quoted(bounds)}")
    for bound in bounds:
        read_number({key: bound}, key)


def read_texts(data: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts; empty for null or nothing."""
    value = data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{key!r} must be a list of texts, found {quoted(value)}")
    return value


def read_optional_text(data: Mapping[str, Any], key: str) -> str | None:
    """A text, or None."""
    return None if data.get(key) is None else read_text(data, key, "")


def read_text(data: Mapping[str, Any], key: str, default: str) -> str:
    """A text, or ``default`` for nothing."""
    value = data.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a text, found {quoted(value)}")
    return value
