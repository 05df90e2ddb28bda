"""Social bias in federated fine-tuning: poison clients, measure every round, aggregate with BAMA.

Importing this package imports neither torch nor transformers.
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
