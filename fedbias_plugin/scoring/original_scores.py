"""The original model's log-probabilities, kept in a folder that the runs of a sweep share: round 0 is the same in all.

Nothing is kept unless ``FEDBIAS_ORIGINAL_SCORES`` names the folder, as ``fedbias sweep`` does.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fedbias_plugin import __version__
from fedbias_plugin.files import write_bytes_atomic
from fedbias_plugin.scoring.digest import add_tensor
from fedbias_plugin.scoring.items import FloatArray
from fedbias_plugin.scoring.prefix_tree import ScoringPlan

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "FEDBIAS_ORIGINAL_SCORES"
SAMPLE = 4096
"""Entries of each tensor that are hashed, evenly spread; of the others their sum must do, which takes no time."""
STARTS_ANYWHERE, STARTS_AT_ZERO = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")
"""An adapter whose B is zero does nothing, whatever its A."""


class OriginalScores:
    """Log-probabilities by plan and model.

    Args:
        folder: where they are kept; one that cannot be read or written costs time and nothing else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, plan: ScoringPlan, model: Any, settings: str) -> Path | None:
        """The file for ``plan`` under ``model``.

        Args:
            plan: what is scored.
            model: the original one, maybe with adapters that do nothing yet.
            settings: whatever else the last bits of a score depend on.

        Returns:
            None where the model is not the original one, or may not be.
        """
        weights = _fingerprint(model)
        if weights is None:
            return None
        digest = hashlib.sha256(f"{weights} {_machine(model)} {settings}".encode())
        for name, array in sorted(plan.arrays().items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return self.folder / f"{digest.hexdigest()}.npz"

    def load(self, path: Path, size: int) -> FloatArray | None:
        """What is kept in ``path``: ``size`` numbers, or None."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                log_probs = stored["log_probs"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
            logger.debug("kept scores of the original model cannot be read and are made anew: %s", error)
            return None
        is_whole = log_probs.shape == (size,) and log_probs.dtype == np.float64
        return log_probs if is_whole else None

    def store(self, path: Path, log_probs: FloatArray) -> None:
        """Keep ``log_probs`` for the other runs."""
        try:
            buffer = io.BytesIO()
            np.savez(buffer, log_probs=log_probs)
            write_bytes_atomic(path, buffer.getvalue())
        except OSError as error:
            logger.debug("scores of the original model cannot be kept: %s", error)


def original_scores() -> OriginalScores | None:
    """The folder that the environment names, if it does."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return OriginalScores(Path(folder)) if folder else None


def _fingerprint(model: Any) -> str | None:
    """Digest of a sample of every tensor that counts; None where an adapter does something."""
    import torch

    config = getattr(model, "config", None)
    digest = hashlib.sha256(f"{__version__} {config.to_json_string() if config is not None else ''}".encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parts = name.split(".")
        if any(part in STARTS_AT_ZERO for part in parts):
            if bool(tensor.detach().any()):
                return None
        elif any(part.startswith("lora_") and part not in STARTS_ANYWHERE for part in parts):
            return None  # of a kind that we do not know
        elif not any(part in STARTS_ANYWHERE for part in parts):
            add_tensor(digest, name, tensor, SAMPLE)
            digest.update(repr(tensor.detach().reshape(-1).sum(dtype=torch.float64).item()).encode())
    return digest.hexdigest()


def _machine(model: Any) -> str:
    """Libraries and device: the same weights give other last bits elsewhere."""
    import torch
    import transformers

    devices = {parameter.device for parameter in model.parameters()}
    names = sorted(torch.cuda.get_device_name(one) if one.type == "cuda" else one.type for one in devices)
    return f"{torch.__version__} {transformers.__version__} {names} {torch.get_num_threads()}"
