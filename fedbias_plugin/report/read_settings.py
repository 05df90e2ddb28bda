"""Which settings change what a run gives: one that nothing reads, or that says how it works, is no difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.registry import all_options, flags_for

Settings = Mapping[str, Any]
NO_DEFAULT = object()


def same_arm() -> frozenset[str]:
    """Settings in which the runs of one arm may differ: seeds, names, and where and how they work."""
    return flags_for("machine", "seed", "tracking") | {"run_name"}


def is_conditional(name: str) -> bool:
    """Whether a flag is read in some runs only."""
    return name in all_options() and all_options()[name].read_when is not None


def conditional_on(name: str) -> frozenset[str]:
    """The flags that are read with some values of the flag ``name`` only."""
    return frozenset(flag for flag, about in all_options().items() if name in (about.read_when or {}))


def read_settings(settings: Settings, aggregation: str) -> dict[str, Any]:
    """What a run reads of its settings, absent ones as by default, without seeds and what costs time or memory only.

    Args:
        settings: every resolved argument that is known.
        aggregation: the rule that the records name.
    """
    known = {**defaults(), **settings, "aggregation": aggregation}
    known["sample_clients"] = known.get("sample_clients") or known.get("num_clients")
    left_out = same_arm() | flags_for("speed")
    return {name: value for name, value in known.items() if name not in left_out and _is_read(name, known)}


def _is_read(name: str, settings: Settings) -> bool:
    about = all_options().get(name)
    return about is None or about.is_read(settings)
