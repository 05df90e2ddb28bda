"""trl's DPOTrainer with the signature and the reference model it had when OpenFedLLM was written.

Differences that stay: trl 0.7.2 tokenized prompt and response apart and cut prompts at 128 tokens; today's trl
tokenizes them together and cuts the end of what is longer than 512 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import DPOConfig
from trl import DPOTrainer as TrlDPOTrainer

from fedbias_plugin.hosts.openfedllm.trainer_bridges import (
    accept_item_counts,
    copy_training_arguments,
    mend_training_arguments,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainingArguments

MAX_LENGTH = 512
"""Tokens of prompt and response; trl 0.7.2's default, which OpenFedLLM relies on (it never passes ``--seq_length``)."""


class DPOTrainer(TrlDPOTrainer):
    """Takes what OpenFedLLM passes.

    Args:
        model: the policy; with an adapter, the same model without it is the reference.
        args: the host's training arguments.
        beta: of the DPO loss.
        tokenizer: pads and is saved beside the host's own checkpoints.
        kwargs: the Trainer's own (``ref_model``, ``train_dataset``).
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self, *, model: Any, args: TrainingArguments, beta: float, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
    ) -> None:
        mend_training_arguments(args)
        config = DPOConfig(
            output_dir=args.output_dir,
            beta=beta,
            max_length=MAX_LENGTH,
            bf16=args.bf16,
            fp16=args.fp16,
            use_cpu=args.use_cpu,
            report_to=[],
        )
        copy_training_arguments(args, config)
        weights = _adapter_of_quantised_model(model)
        super().__init__(model=model, args=config, processing_class=tokenizer, **kwargs)
        for parameter, data in weights.items():
            parameter.data = data
        if "ref" in getattr(model, "peft_config", {}):
            # A copy of the adapter as it is now; from the second client on it would no longer be the reference.
            model.delete_adapter("ref")
        self.model_accepts_loss_kwargs = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_item_counts(cls)

    def _send_telemetry(self) -> None:
        """One ping a client a round is nobody's business; trl's own switch is for the whole process."""


def _adapter_of_quantised_model(model: Any) -> dict[Any, Any]:
    """Parameter -> data of what trl is about to cast to bfloat16, in which small updates are lost."""
    if not (getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False)):
        return {}
    return {parameter: parameter.data for parameter in model.parameters() if parameter.requires_grad}
