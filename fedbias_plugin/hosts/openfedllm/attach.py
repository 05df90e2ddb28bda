"""The one line of a patched script imports this module, before anything else of the script runs.

It mends the libraries (``stack``), gives the host's parser the plugin's flags (``flags``), and puts the plugin in front
of the host's functions (``hooks``), in the modules that the script is about to import them from, so that every way to
import gets the plugin's.
"""

from __future__ import annotations

import sys
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm import flags, stack
from fedbias_plugin.hosts.openfedllm.inspection import PACKAGES, SETTINGS
from fedbias_plugin.logs import log_to_stderr

TAKEN = ("HfArgumentParser", "DataCollatorForCompletionOnlyLM", "SFTTrainer", "DPOTrainer", "get_peft_model")
"""Names that a script must not have imported yet, because something else is to stand there."""


def check_first() -> None:
    """Refuse a script that has imported what is to be replaced: a sorter of imports has moved the line."""
    early = [name for name in (*PACKAGES, SETTINGS.removesuffix(".py")) if name in sys.modules]
    early += [name for name in TAKEN if name in vars(sys.modules["__main__"])]
    if early:
        raise UserError(
            f"the script imports {', '.join(early)} before the plugin's line, which has to be its first statement; "
            "`fedbias patch .` moves it there."
        )


def __getattr__(name: str) -> Any:
    """What config.py of a checkout that version 0.x patched asks for."""
    if name == "extend_arguments":
        from fedbias_plugin.hosts.openfedllm import compat  # which leaves, and says how to go on

        return compat
    raise AttributeError(name)


log_to_stderr()
with flags.one_line():
    check_first()
    STACK = stack.install()
    from fedbias_plugin.hosts.openfedllm import hooks  # which imports torch and more

    hooks.install(pinned=STACK == "pinned")
    flags.install(hooks.begin)
