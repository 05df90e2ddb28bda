"""Makes the installed libraries what OpenFedLLM expects, before it imports them.

Pinned stack (trl 0.7.2, Transformers 4.31): only what crashes or trains on nothing is mended. Current stack (trl 1.x,
Transformers 5): the classes that are gone come back. What each bridge is for: docs/openfedllm.md.
"""

from __future__ import annotations

import logging
import warnings

from fedbias_plugin.hosts.openfedllm.stack import WORKING, detect_stack, untested

logger = logging.getLogger(__name__)


def install() -> str:
    """Put the bridges in place; returns the stack's name.

    Raises:
        UserError: the installed versions are not known to work together.
    """
    stack = detect_stack()
    if untested(stack):
        logger.warning("%s: the plugin is tested with other versions.\n%s", untested(stack), WORKING)
    import trl

    from fedbias_plugin.hosts.openfedllm import peft_bridges

    peft_bridges.install()
    if stack == "pinned":
        from fedbias_plugin.hosts.openfedllm.completion_collator import CompletionCollator

        trl.DataCollatorForCompletionOnlyLM = CompletionCollator
    else:
        import transformers

        from fedbias_plugin.hosts.openfedllm import dpo_trainer, loading, sft_trainer

        # The host's own arguments, said anew for every client.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
        trl.DataCollatorForCompletionOnlyLM = sft_trainer.DataCollatorForCompletionOnlyLM
        trl.SFTTrainer, trl.DPOTrainer = sft_trainer.SFTTrainer, dpo_trainer.DPOTrainer
        transformers.AutoModelForCausalLM = loading.AutoModelForCausalLM
    return stack
