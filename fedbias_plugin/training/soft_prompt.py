"""A soft prompt: embeddings before every text, trained while the model stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.training.base import Trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INITS = {"vocab": "SAMPLE_VOCAB", "random": "RANDOM"}
"""Where a prompt begins -> peft's name for it."""


@dataclass
class SoftPrompt(Trainable):
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691): peft's, on the frozen model.

    The untouched model of round 0 has the prompt already, in which nothing is learned yet.
    """

    num_virtual_tokens: int = option(20, "tokens of the soft prompt, each a trained embedding", at_least=1)
    soft_prompt_init: str = option(
        "vocab",
        "where the soft prompt begins: embeddings of words drawn by --seed (vocab), or normal noise of size 1 (random)",
        choices=tuple(INITS),
    )
    is_adapter = True

    def prepare(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """``model`` behind a prompt that is drawn from ``seed``; the global random state is left as it was.

        Raises:
            UserError: the prompt leaves no position for a text, or the model is no causal LM.
        """
        import torch
        from peft import PromptTuningConfig, get_peft_model

        from fedbias_plugin.training.models import without_peft_notices

        if model.get_output_embeddings() is None:
            raise UserError(f"--trainable soft_prompt is for causal language models, not for a {type(model).__name__}.")
        positions = getattr(model.config, "max_position_embeddings", None)
        if isinstance(positions, int) and self.num_virtual_tokens >= positions:
            raise UserError(
                f"--num_virtual_tokens {self.num_virtual_tokens} leaves no room for a text: the model has {positions} "
                "positions (max_position_embeddings)."
            )
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.num_virtual_tokens,
            prompt_tuning_init=INITS[self.soft_prompt_init],
        )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), without_peft_notices():
            torch.manual_seed(seed)
            return get_peft_model(model, config)
