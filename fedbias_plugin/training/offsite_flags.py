"""The flags of offsite tuning (:mod:`fedbias_plugin.training.offsite`), and what they do not go with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.fed_algs import local_client
from fedbias_plugin.options import option, options, split_list
from fedbias_plugin.registry import load
from fedbias_plugin.training.trainables import Lora

ALIGNS = ("every_round", "initial", "none")
ALIGNED = {"trainable": ("offsite",), "ot_align": ("every_round", "initial")}
MEANS = ("fedavg", "fedprox")
"""The server algorithms whose new global state is the mean of the clients' states."""
COMPARES_UPDATES = ("krum", "multi_krum", "norm_clip")
"""Rules that give weights, by the distances or the norms of whole updates."""


@dataclass
class OffsiteFlags(Lora):
    """Which layers are whose, what is trained of them, and how the emulator is aligned."""

    is_adapter = False  # without it a client's model is the emulator, and not the frozen model
    public_flag = "ot_public"

    ot_adapter_layers: int | None = option(
        None,
        "last layers of the model that clients train, the adapter; without it 2, or the largest of "
        "--ot_adapter_choices",
        at_least=1,
    )
    ot_adapter_choices: str | None = option(
        None,
        "numbers of last layers, such as 2,4,6: each client trains the largest that fits its --client_memory_mb "
        "(FedBiAlign)",
    )
    client_memory_mb: str | None = option(
        None,
        "memory of the clients' devices in MiB: one number for all, or one a client, such as 8000,8000,24000; a client "
        "that needs more is refused",
    )
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
    def reads_public_rows(cls, flags: Mapping[str, Any]) -> bool:
        """Where the emulator is aligned."""
        return bool(flags["ot_align"] != "none")

    @property
    def choices(self) -> tuple[int, ...]:
        """The numbers of last layers that a client may train, the smallest first."""
        found = layer_choices(self.ot_adapter_choices)
        return found or (2 if self.ot_adapter_layers is None else self.ot_adapter_layers,)

    @property
    def adapter_layers(self) -> int:
        """a_max: the last layers of which every client gets the weights."""
        return max(self.choices)

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Refuse what works on another model than the clients', and what does not go with devices of several sizes."""
        if flags.get("exact_lora") == "fold":
            raise UserError(
                "--exact_lora fold changes frozen weights, which the clients of --trainable offsite do not have: give "
                "--exact_lora truncate."
            )
        if flags.get("task", "sft") == "classify":
            raise UserError("--trainable offsite is for causal language models: it does not fit --task classify.")
        if flags.get("local_baseline"):
            raise UserError("--local_baseline trains whole models; it does not fit --trainable offsite.")
        _check_devices(flags)


def layer_choices(text: str | None) -> tuple[int, ...]:
    """``"4,2"`` -> ``(2, 4)``; empty without a text.

    Raises:
        UserError: a part is no number of layers.
    """
    try:
        found = sorted({int(part) for part in split_list(text or "")})
    except ValueError:
        found = [0]
    if (text is not None and not found) or any(one < 1 for one in found):
        raise UserError(f"--ot_adapter_choices {text}: give numbers of layers from 1 on, such as 2,4,6.")
    return tuple(found)


def memory_of_clients(text: str, num_clients: int) -> list[float]:
    """Bytes that each client's device has, from ``--client_memory_mb``.

    >>> memory_of_clients("1,2", 2), memory_of_clients("0.5", 3)
    ([1048576.0, 2097152.0], [524288.0, 524288.0, 524288.0])

    Raises:
        UserError: a part is no number above 0, or there are neither one nor as many as clients.
    """
    parts = split_list(text)
    try:
        sizes = [float(part) for part in parts]
    except ValueError:
        sizes = [math.nan]
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise UserError(f"--client_memory_mb {text}: give MiB above 0, one number for all clients or one a client.")
    if len(sizes) not in (1, num_clients):
        raise UserError(
            f"--client_memory_mb has {len(sizes)} numbers for {num_clients} clients; give one for all, or one a client."
        )
    return [size * 2**20 for size in (sizes * num_clients if len(sizes) == 1 else sizes)]


def _check_devices(flags: Mapping[str, Any]) -> None:
    """Refuse flags of devices that contradict each other or the rest of the run."""
    text, layers = flags.get("ot_adapter_choices"), flags.get("ot_adapter_layers")
    choices, memory = layer_choices(text), flags.get("client_memory_mb")
    if memory is not None:
        memory_of_clients(str(memory), int(flags.get("num_clients", 1)))
    if not choices:
        return
    if layers is not None and layers != choices[-1]:
        raise UserError(
            f"--ot_adapter_layers {layers} and --ot_adapter_choices {text} contradict each other: the adapter has the "
            f"largest choice's {choices[-1]} layers; drop --ot_adapter_layers."
        )
    if memory is None:
        raise UserError(f"--ot_adapter_choices {text} is chosen from by --client_memory_mb: give it.")
    if len(choices) > 1:
        for reason in _misfits(flags):
            raise UserError(f"Clients of --ot_adapter_choices {text} train different layers: {reason}.")


def _misfits(flags: Mapping[str, Any]) -> Iterator[str]:
    """Why the mean layer by layer, over those clients that trained it, would be wrong in a run with these flags."""
    algorithm, rule = str(flags.get("fed_alg", "fedavg")), str(flags.get("aggregation", "plain"))
    if algorithm == "scaffold":
        yield "SCAFFOLD's correction would move those that a client does not train; give --fed_alg fedavg or fedprox"
    if algorithm not in MEANS and local_client(algorithm) is None:
        yield (
            f"--fed_alg {algorithm} would move on by its momentum where nobody trained; give --fed_alg fedavg or "
            "fedprox"
        )
    if flags.get("dp_epsilon") is not None or flags.get("dp_noise_multiplier") is not None:
        yield "the noise of --dp_epsilon is not fitted to a mean over a part of the clients; drop it"
    if flags.get("exact_lora") is not None:
        yield "--exact_lora averages the products of all clients alike; drop it"
    if not load("rule", rule)(**_own(rule, flags)).is_sum or rule in COMPARES_UPDATES:
        yield (
            f"--aggregation {rule} compares or bounds whole updates, and one of few layers is small by itself; give a "
            "rule that weighs clients, such as plain or bama"
        )
    if rule == "fedpsf" and "psm" in split_list(str(flags.get("fedpsf_modules", "psm,dwm,abm"))):
        yield "FedPSF's psm picks what is sent of all layers; give --fedpsf_modules dwm,abm"


def _own(rule: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: flags[name] for name in options(load("rule", rule)) if name in flags}
