"""Flower (flwr): federations on more than one machine. What is exported here is loaded, and flwr with it, when used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError, first_line

if TYPE_CHECKING:
    from fedbias_plugin.hosts.flower.strategy import BamaStrategy

__all__ = ["BamaStrategy"]


def __getattr__(name: str) -> Any:
    """``BamaStrategy``, at the first touch.

    Raises:
        UserError: flwr is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from fedbias_plugin.hosts.flower.strategy import BamaStrategy
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "flwr":
            raise
        raise UserError(
            f"{name} needs flwr on Python 3.11 or newer ({first_line(error)}): pip install 'fedbias_plugin[flower]'"
        ) from error
    return BamaStrategy
