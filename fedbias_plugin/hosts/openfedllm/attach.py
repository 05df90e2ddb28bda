"""The one line of a patched script imports this module, before anything else of the script runs.

It mends the libraries (``bridges``), gives the host's parser the plugin's flags (``flags``), and puts the plugin in
front of the host's functions (``hooks``), in the modules that the script is about to import them from.
"""

from __future__ import annotations

from fedbias_plugin.hosts.openfedllm import bridges, flags
from fedbias_plugin.logs import log_to_stderr

log_to_stderr()
with flags.one_line():
    STACK = bridges.install()
    from fedbias_plugin.hosts.openfedllm import hooks  # which imports torch and more

    hooks.install(pinned=STACK == "pinned")
    flags.install(hooks.begin)
