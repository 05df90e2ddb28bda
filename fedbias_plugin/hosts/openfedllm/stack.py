"""Which libraries this Python has, those OpenFedLLM pins or current ones, and what makes them what it expects.

Pinned stack (trl 0.7.2, Transformers 4.31): only what crashes or trains on nothing is mended. Current stack (trl 1.x,
Transformers 5): the classes that are gone come back. What each bridge is for: docs/openfedllm.md.
"""

from __future__ import annotations

import logging
import warnings

from fedbias_plugin.errors import UserError
from fedbias_plugin.versions import installed_version, version_numbers

logger = logging.getLogger(__name__)

INSTALL = 'in the folder of fedbias_plugin: pip install -c constraints.txt -e ".[openfedllm]"'
TESTED = {
    "pinned": {"trl": "0.7.2", "transformers": "4.31"},
    "current": {"trl": "1.16", "transformers": "5.23"},
}
"""First numbers of the versions that the tests run with."""
WORKING = """Known to work together:
  trl 0.7.2 with transformers 4.31.0 (constraints-openfedllm-pinned.txt)
  trl 1.16 with transformers 5.23 (constraints.txt)
Choose one, for example: pip install "trl==1.16.*" "transformers==5.23.*" -c constraints.txt"""


def stack_versions() -> dict[str, str | None]:
    """The installed versions of trl and transformers, None for one that is missing."""
    return {name: installed_version(name) for name in ("trl", "transformers")}


def detect_stack() -> str:
    """``"pinned"`` or ``"current"``, from the versions of trl and transformers.

    pinned: 0.7.2 <= trl < 0.8 and 4.31 <= transformers < 4.37. current: trl >= 1.0 and transformers >= 5.

    Raises:
        UserError: one of the two is not installed, or they are not known to work together; the message gives the
            versions found, those that work, and the line that installs them.
    """
    versions = stack_versions()
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: not installed, but OpenFedLLM needs both trl and transformers: {INSTALL}"
        )
    trl, transformers = (version_numbers(version) for version in versions.values() if version is not None)
    if (0, 7, 2) <= trl < (0, 8) and (4, 31) <= transformers < (4, 37):
        return "pinned"
    if trl >= (1,) and transformers >= (5,):
        return "current"
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    raise UserError(f"{found}: not known to work together.\n{WORKING}")


def install() -> str:
    """Put the bridges into trl, peft and Transformers, before the host imports them; returns the stack's name."""
    stack = detect_stack()
    tested, found = TESTED[stack], stack_versions()
    others = [
        f"{name} {version}" for name, version in found.items() if not f"{version}.".startswith(f"{tested[name]}.")
    ]
    if others:
        logger.warning("%s: the plugin is tested with other versions.\n%s", ", ".join(others), WORKING)
    import trl

    from fedbias_plugin.hosts.openfedllm import peft_bridges

    peft_bridges.install()
    if stack == "pinned":
        from fedbias_plugin.hosts.openfedllm.completion_collator import CompletionCollator

        trl.DataCollatorForCompletionOnlyLM = CompletionCollator
    else:
        import transformers

        from fedbias_plugin.hosts.openfedllm import current_stack

        # The host's own arguments, said anew for every client.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        for name in ("DataCollatorForCompletionOnlyLM", "SFTTrainer", "DPOTrainer"):
            setattr(trl, name, getattr(current_stack, name))
        transformers.AutoModelForCausalLM = current_stack.AutoModelForCausalLM
    return stack
