"""What the runs of a plan need of a GPU, and whether this machine's has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fedbias_plugin.assets import TINY
from fedbias_plugin.poisoning.hub import cached_snapshot
from fedbias_plugin.preflight import model_path
from fedbias_plugin.sweep.configs import ModelConfig
from fedbias_plugin.sweep.memory_estimate import memory_estimate
from fedbias_plugin.sweep.plan import PlannedRun

NAMES = {"train": "adapters", "full_finetuning": "every weight"}
FLAGS = (
    *("model_name_or_path", "dtype", "load_in_8bit", "load_in_4bit", "use_peft", "peft_lora_r"),
    *("peft_lora_target_modules", "batch_size", "seq_length", "bf16", "gradient_checkpointing"),
)
"""Those that :func:`memory_estimate` reads, and the model."""


def memory_lines(model: ModelConfig, planned: Sequence[PlannedRun]) -> list[str]:
    """One line with the most that a run of each kind takes; none for the bundled model, which needs no GPU.

    Counted from the runs' own flags where the model's configuration is on this machine, else the model file's
    ``memory_gib``, which is for the file's own flags; the line says which.

    Raises:
        UserError: the adapters fit no module of the model.
    """
    kinds = {"train" if run.settings["use_peft"] else "full_finetuning" for run in planned}
    counted = _counted(planned)
    needed = counted or {kind: model.memory_gib[kind] for kind in sorted(kinds) if kind in model.memory_gib}
    if not needed:
        return []
    import torch

    listed = ", ".join(f"{gib:.0f} GiB to train {NAMES[kind]}" for kind, gib in sorted(needed.items()))
    source = "counted with these flags" if counted else "with the flags of the model's file"
    line = f"GPU memory of one run (estimate, {source}): {listed}"
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0).total_memory / 2**30
        line += f"; the GPU has {found:.0f}" + (": TOO LITTLE" if found < max(needed.values()) else "")
    return [line]


def _counted(planned: Sequence[PlannedRun]) -> dict[str, float]:
    """Kind of training -> GiB of its largest run; empty where a model's configuration is not here."""
    needed: dict[str, float] = {}
    for values in {tuple(run.settings[name] for name in FLAGS): run.settings for run in planned}.values():
        config = None if values["model_name_or_path"] == TINY else _config(values)
        if config is None:
            return {}
        kind = "train" if values["use_peft"] else "full_finetuning"
        needed[kind] = max(needed.get(kind, 0.0), memory_estimate(config, values).train_gib)
    return needed


def _config(settings: Mapping[str, Any]) -> Any:
    """The model's configuration from its folder or the hub's cache; None where it is in neither."""
    path = model_path(settings["model_name_or_path"])
    if not os.path.isdir(path):
        cached = cached_snapshot(path, "models")
        if cached is None or not (cached / "config.json").is_file():
            return None
        path = str(cached)
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception:  # a damaged file, or a model that brings its own code: the run itself says what is wrong
        return None
