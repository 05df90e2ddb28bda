"""What a run saved, as W&B artifacts: the global model of every saved round, and the files that describe the run.

Found by looking into the run's folder, so that a run that is resumed sends what an earlier process saved too, and both
hosts are served alike. Files are referred to where they lie, not copied: an offline run is to be synced from there.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fedbias_plugin.tracking.wandb_names import artifact_name

LIMIT_VARIABLE = "FEDBIAS_WANDB_MAX_MB"
DEFAULT_LIMIT = 500
RUN_FILES = ("run.json", "manifest.json", "probe.json", "summary.json", "metrics.jsonl")
MODEL_SUFFIXES = (".safetensors", ".json", ".md", ".model", ".txt", ".jinja")
"""Weights, configuration, card and tokenizer. Not ``.bin``: pickled arguments of a host may hold its logins."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedModel:
    """A folder with the global model after ``round``; None for the final one."""

    folder: Path
    round: int | None

    @property
    def kind(self) -> str:
        """``adapter`` or ``model`` (all weights)."""
        return "adapter" if (self.folder / "adapter_config.json").exists() else "model"


def saved_models(output_dir: Path) -> list[SavedModel]:
    """The global models below a run's folder, rounds ascending, the final one last.

    ``checkpoint-N`` of Transformers' own trainer, where N counts steps, is none. Neither is a folder of pickled
    weights, as a host saves with the libraries that it pins: an artifact without them would be no model.
    """
    found = {}
    for folder in output_dir.glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and any(folder.glob("*.safetensors")) and not (folder / "trainer_state.json").exists():
            found[int(number[1])] = folder
    final = [output_dir / name for name in ("adapter", "model") if (output_dir / name).is_dir()]
    return [*(SavedModel(found[round_], round_) for round_ in sorted(found)), *(SavedModel(one, None) for one in final)]


def size_limit() -> int:
    """Bytes that one artifact may have: ``FEDBIAS_WANDB_MAX_MB`` megabytes, 0 for no artifacts at all."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not text.isdecimal():
        logger.warning("%s=%.40r is no whole number of megabytes; it is %d.", LIMIT_VARIABLE, text, DEFAULT_LIMIT)
    return (int(text) if text.isdecimal() else DEFAULT_LIMIT) * 10**6


class ArtifactLog:
    """Sends each saved model once. An error costs the artifacts that are left, and one line.

    Args:
        wandb: the package.
        run: its run.
        output_dir: the run's folder.
        run_name: begins the artifacts' names.
        run_id: tells runs of the same name apart.
    """

    def __init__(self, wandb: ModuleType, run: Any, output_dir: Path, run_name: str, run_id: str) -> None:
        self._wandb, self._run, self._output_dir = wandb, run, output_dir.resolve()
        self._run_name, self._run_id = run_name, run_id
        self._limit = size_limit()
        self._seen: set[Path] = set()
        self._too_large: set[str] = set()

    def log_models(self, last_round: int, *, finished: bool = False) -> None:
        """Send the models of the rounds up to ``last_round``, and with ``finished`` the final one."""
        models = saved_models(self._output_dir) if self._limit else []
        has_final = finished and any(saved.round is None for saved in models)
        for saved in models:
            is_final = saved.round is None
            number = last_round if saved.round is None else saved.round
            is_due = finished if is_final else number < last_round + (not has_final)
            if is_due and saved.folder not in self._seen:
                self._seen.add(saved.folder)
                aliases = [f"round-{number}", "latest", *(["final"] if is_final else [])]
                files = [path for path in sorted(saved.folder.iterdir()) if path.suffix in MODEL_SUFFIXES]
                self._log(saved.kind, f"{self._run_id}-{saved.kind}", files, aliases, {"round": number})

    def log_run_files(self) -> None:
        """Send what describes a finished run: who holds what, which items weigh, every number."""
        files = [self._output_dir / name for name in RUN_FILES]
        self._log("run-files", f"{self._run_id}-files", files, ["latest"], {})

    def _log(self, kind: str, suffix: str, files: list[Path], aliases: list[str], metadata: dict[str, Any]) -> None:
        files = [path for path in files if path.is_file() and not path.is_symlink()]
        if not files or not self._limit:
            return
        size = sum(path.stat().st_size for path in files)
        if size > self._limit:
            if kind not in self._too_large:
                self._too_large.add(kind)
                logger.warning(
                    "W&B gets no artifact of this run's %s: %d MB are more than %s=%d.",
                    *(kind, size // 10**6, LIMIT_VARIABLE, self._limit // 10**6),
                )
            return
        try:
            name = artifact_name(self._run_name, suffix)
            artifact = self._wandb.Artifact(name, type=kind, metadata=metadata)
            for path in files:
                artifact.add_file(str(path), policy="immutable", skip_cache=True)
            self._run.log_artifact(artifact, aliases=aliases)
        except Exception as error:
            self._limit = 0
            reason = " ".join(str(error).split())
            logger.warning("W&B gets no further artifacts of this run (%s: %.200s).", type(error).__name__, reason)
