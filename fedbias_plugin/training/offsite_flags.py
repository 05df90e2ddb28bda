"""The flags of offsite tuning (:mod:`fedbias_plugin.training.offsite`), and what they do not go with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.training.trainables import Lora

ALIGNS = ("every_round", "initial", "none")
ALIGNED = {"trainable": ("offsite",), "ot_align": ("every_round", "initial")}


@dataclass
class OffsiteFlags(Lora):
    """Which layers are whose, what is trained of them, and how the emulator is aligned."""

    is_adapter = False  # without it a client's model is the emulator, and not the frozen model

    ot_adapter_layers: int = option(2, "last layers of the model that clients train, the adapter", at_least=1)
    ot_drop_ratio: float = option(
        0.2, "share of the layers below the adapter that the emulator goes without", at_least=0, at_most=1
    )
    ot_params: str = option(
        "lora", "what is trained of these layers: LoRA adapters in them, or all their weights", choices=("lora", "full")
    )
    ot_align: str = option(
        "every_round",
        "when the server trains the emulator to follow the whole model: before every round, before the first alone, or "
        "never",
        choices=ALIGNS,
    )
    ot_initial_rounds: int = option(
        50, "alignments of --ot_align_steps before the first round", at_least=1, read_when=ALIGNED
    )
    ot_align_steps: int = option(
        10, "optimizer steps of an alignment, of --batch_size public rows each", at_least=1, read_when=ALIGNED
    )
    ot_align_learning_rate: float | None = option(
        None, "learning rate of the alignment; without it --learning_rate", above=0, read_when=ALIGNED
    )
    ot_sim: str = option(
        "l2", "distance of hidden states that an alignment lowers", choices=("l2", "cos"), read_when=ALIGNED
    )
    ot_layerwise: bool = option(
        True, "sum that distance over every layer of the emulator, not of its last one alone", read_when=ALIGNED
    )
    ot_kl_weight: float = option(
        0.9,
        "weight of the KL divergence from the whole model; with --ot_align initial of the distance, in its place",
        at_least=0,
        read_when=ALIGNED,
    )
    ot_lm_weight: float = option(
        0.1,
        "weight of the public rows' own loss in the alignment",
        at_least=0,
        read_when={"trainable": ("offsite",), "ot_align": ("initial",)},
    )
    ot_prox: float = option(
        0.0,
        "mu of mu ||a - a_0||^2, which keeps a client's adapter near the round's first; 0 as in the released code",
        at_least=0,
    )
    ot_public: str = option(
        "auto",
        "public rows for the alignment: a file or a name as --clean_dataset takes it; auto: rows of the clean data set "
        "that no client holds and nobody measures",
        read_when=ALIGNED,
    )
    ot_probe: str = option(
        "plugin",
        "the model that a client's bias is measured in: the whole one with its adapter, or the emulator model",
        choices=("plugin", "emulator"),
    )

    @classmethod
    def uses_peft(cls, flags: Mapping[str, Any]) -> bool:
        """By ``--ot_params``."""
        return str(flags.get("ot_params", "lora")) == "lora"

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Refuse what works on another model than the clients'."""
        if flags.get("exact_lora") == "fold":
            raise UserError(
                "--exact_lora fold changes frozen weights, which the clients of --trainable offsite do not have: give "
                "--exact_lora truncate."
            )
        if flags.get("task", "sft") == "classify":
            raise UserError("--trainable offsite is for causal language models: it does not fit --task classify.")
        if flags.get("local_baseline"):
            raise UserError("--local_baseline trains whole models; it does not fit --trainable offsite.")
