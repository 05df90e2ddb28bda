"""Which settings change what a run gives: one that nothing reads, or that says how it works, is no difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fedbias_plugin.arguments import ATTACKS, USE_BYZANTINE_CLIENTS
from fedbias_plugin.hosts.builtin.resolve import defaults
from fedbias_plugin.tracking.records import MACHINE_FLAGS

Settings = Mapping[str, Any]

SAME_ARM = MACHINE_FLAGS | {"seed", "schedule_seed", "track", "run_name"}
"""Settings in which the runs of one arm may differ: seeds, names, and where and how they work."""
SPEED_FLAGS = frozenset(("gradient_checkpointing", "bias_batch_tokens", "on_bad_update"))
"""Likewise: they cost memory or time, or say what happens to a run that fails."""
NO_DEFAULT = object()


def _where(flag: str, *values: Any) -> Callable[[Settings], bool]:
    return lambda settings: settings.get(flag) in values


_BAMA = _where("aggregation", "bama")
_ADAPTIVE = _where("fed_alg", "fedadagrad", "fedyogi", "fedadam")
_SECOND_MOMENT_DECAYS = _where("fed_alg", "fedyogi", "fedadam")
_LORA = _where("use_peft", True)


def _is_dealt(settings: Settings) -> bool:
    """Whether the plugin deals the rows, and not a patched host its own."""
    return settings.get("scenario") != "none"


READ_WHERE: Mapping[str, Callable[[Settings], bool]] = {
    "bama_alpha": _BAMA,
    "bama_lambda": _BAMA,
    "bama_weighting": _BAMA,
    "byzantine_clients": _where("aggregation", *USE_BYZANTINE_CLIENTS),
    "clip_norm": _where("aggregation", "norm_clip"),
    "attack_strength": _where("attack", *ATTACKS[1:]),
    "biased_shares": _where("scenario", "custom"),
    "clean_dataset": _is_dealt,
    "biased_dataset": _is_dealt,
    "client_samples": _is_dealt,
    "heldout_samples": _is_dealt,
    "prox_mu": _where("fed_alg", "fedprox"),
    "fedopt_tau": _ADAPTIVE,
    "fedopt_eta": _ADAPTIVE,
    "fedopt_v0": _ADAPTIVE,
    "fedopt_beta1": _where("fed_alg", "fedavgm", "fedyogi", "fedadam"),
    "fedopt_beta2": _SECOND_MOMENT_DECAYS,
    "fedopt_variant": _SECOND_MOMENT_DECAYS,
    "max_steps": _where("local_epochs", None),
    "peft_lora_r": _LORA,
    "peft_lora_alpha": _LORA,
    "peft_lora_dropout": _LORA,
    "peft_lora_target_modules": _LORA,
}
"""Flag -> when it is read; all others always are. ``bama_crows_fraction`` and ``bama_stereoset_fraction`` are among
those: without BAMA too they say which items the headline is of."""


def read_settings(settings: Settings, aggregation: str) -> dict[str, Any]:
    """What a run reads of its settings, absent ones as by default, without seeds and :data:`SPEED_FLAGS`.

    Args:
        settings: every resolved argument that is known.
        aggregation: the rule that the records name.
    """
    known = {**defaults(), **settings, "aggregation": aggregation}
    known["sample_clients"] = known.get("sample_clients") or known.get("num_clients")
    return {name: value for name, value in known.items() if _counts(name) and _is_read(name, known)}


def _counts(name: str) -> bool:
    return name not in SAME_ARM and name not in SPEED_FLAGS and not name.startswith("wandb")


def _is_read(name: str, settings: Settings) -> bool:
    return name not in READ_WHERE or READ_WHERE[name](settings)
