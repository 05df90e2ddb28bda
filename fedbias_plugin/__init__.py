"""Social bias in federated fine-tuning: poison clients, measure every round, aggregate with BAMA.

The front door: :func:`measure` scores a model in memory, :class:`BiasSession` goes into a federated loop of your own,
:func:`run` is ``fedbias run`` from Python. Importing this package imports neither torch nor transformers.
"""

import sys

__version__ = "0.1.0"

# Plain syntax, for old Pythons: a patched OpenFedLLM script may be started with one.
if sys.version_info < (3, 10):  # noqa: UP036
    raise ImportError(
        f"fedbias_plugin needs Python 3.10 or newer; this is Python {sys.version_info[0]}.{sys.version_info[1]} "
        f"({sys.executable}). OpenFedLLM's pinned libraries run on Python 3.10 and 3.11: make an environment with one "
        "of them. To run OpenFedLLM without the plugin: fedbias unpatch DIR, or git checkout its scripts"
    )

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedbias_plugin.by_hand import BiasSession
    from fedbias_plugin.errors import UserError
    from fedbias_plugin.hosts.builtin.start import run
    from fedbias_plugin.measuring import measure

__all__ = ["BiasSession", "UserError", "measure", "run"]

_PLACES = {
    "BiasSession": "fedbias_plugin.by_hand",
    "UserError": "fedbias_plugin.errors",
    "measure": "fedbias_plugin.measuring",
    "run": "fedbias_plugin.hosts.builtin.start",
}


def __getattr__(name: str) -> Any:
    """The front door, loaded at the first touch: what is behind it imports torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
