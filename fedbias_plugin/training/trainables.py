"""What can be trained: LoRA adapters, or every weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option, split_list
from fedbias_plugin.training.base import Trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LORA = {"use_peft": (True,)}
OTHERS = {"trainable": ("soft_prompt",)}
"""Adapters that are no LoRA."""
TARGET_MODULES = {"phi3": ["qkv_proj"]}
"""Kinds of model that peft makes no choice for: the queries and values, as in its choice for Llama."""


@dataclass
class Lora(Trainable):
    """LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on the frozen model; the head of a classifier trains whole."""

    is_adapter = True

    peft_lora_r: int = option(
        8, "rank of the LoRA adapters", at_least=1, of_host=True, read_when=LORA, unread_when=OTHERS
    )
    peft_lora_alpha: int = option(
        16, "alpha of the LoRA adapters", at_least=1, of_host=True, read_when=LORA, unread_when=OTHERS
    )
    peft_lora_dropout: float = option(
        0.05, "dropout of the LoRA adapters", at_least=0, at_most=1, of_host=True, read_when=LORA, unread_when=OTHERS
    )
    peft_lora_target_modules: str | None = option(
        None,
        "modules that get an adapter, comma separated, or all-linear; peft's choice for the model when absent",
        of_host=True,
        read_when=LORA,
        unread_when=OTHERS,
    )

    def prepare(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """``model``, changed in place, with an adapter whose B is zero and whose A is drawn from ``seed``.

        Its output is multiplied by alpha / r. The global random state is left as it was.

        Raises:
            UserError: peft has no choice for this kind of model, or no module has one of these names.
        """
        return self.adapted(model, seed)

    def adapted(self, model: PreTrainedModel, seed: int, **where: Any) -> PreTrainedModel:
        """As :meth:`prepare`; ``where`` are further settings of peft's, such as the layers that get an adapter.

        Raises:
            UserError: peft has no choice for this kind of model, or no module has one of these names.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        from fedbias_plugin.training.heads import new_heads
        from fedbias_plugin.training.models import without_peft_notices

        if not getattr(model, "has_pretrained_weights", True):
            raise UserError(
                f"LoRA adapts a pretrained model, and {type(model).__name__} is none: give --use_peft false."
            )
        heads = new_heads(model)
        given = self.peft_lora_target_modules
        modules = TARGET_MODULES.get(model.config.model_type) if given is None else given
        config = LoraConfig(
            r=self.peft_lora_r,
            lora_alpha=self.peft_lora_alpha,
            lora_dropout=self.peft_lora_dropout,
            bias="none",
            task_type="SEQ_CLS" if heads else "CAUSAL_LM",
            modules_to_save=heads or None,
            target_modules=split_list(modules) if isinstance(modules, str) and modules != "all-linear" else modules,
            **where,
        )
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), without_peft_notices():
            torch.manual_seed(seed)
            try:
                return get_peft_model(model, config)
            except ValueError as error:
                linear = {
                    name.rpartition(".")[2]
                    for name, module in model.named_modules()
                    if getattr(getattr(module, "weight", None), "ndim", 0) == 2
                    and not isinstance(module, torch.nn.Embedding)
                }
                raise UserError(
                    f"LoRA does not fit this {type(model).__name__}: {error} Give --peft_lora_target_modules "
                    f"all-linear, or some of its linear modules: {', '.join(sorted(linear))}."
                ) from error


@dataclass
class Full(Trainable):
    """Every weight of the model."""

    def prepare(self, model: PreTrainedModel, seed: int) -> PreTrainedModel:
        """``model`` as it is."""
        return model
