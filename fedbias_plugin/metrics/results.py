"""Where a result comes from: data, model, versions (docs/metrics.md)."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.metrics.formatting import plain

if TYPE_CHECKING:
    from fedbias_plugin.scoring.scorer import SentenceScorer

PACKAGES = ("fedbias-plugin", "torch", "transformers", "peft", "trl", "datasets", "tokenizers", "numpy", "bitsandbytes")


@dataclass(frozen=True)
class ResultMetadata:
    """Where a result comes from (docs/metrics.md).

    Attributes:
        benchmark: name of the metric.
        file, file_sha256: the data set.
        items, ids_hash: how many items were scored, and which.
        reduction, tie_rate: of the result.
        scoring: what the texts were scored in, a :class:`ScoringChoice` as JSON; likewise.
        prefix_token, prefix_id: what every sentence is conditioned on; None for published predictions.
        model: see :func:`model_identity`; None for published predictions.
        tokenizer: see :func:`fedbias_plugin.training.fingerprint.tokenizer_fingerprints`; likewise.
        adapter: path of the adapter, where the caller knows it.
        versions: see :func:`package_versions`.
        seed: of the bootstrap.
    """

    benchmark: str
    file: str
    file_sha256: str
    items: int
    ids_hash: str
    reduction: str
    tie_rate: float
    prefix_token: str | None
    prefix_id: int | None
    model: dict[str, Any] | None
    tokenizer: dict[str, str] | None
    adapter: str | None
    versions: dict[str, str]
    seed: int
    scoring: dict[str, Any] | None = None

    @classmethod
    def build(
        cls,
        benchmark: Any,
        result: Any,
        *,
        seed: int,
        scorer: SentenceScorer | None = None,
        adapter: str | None = None,
        scoring: dict[str, Any] | None = None,
    ) -> ResultMetadata:
        """Metadata of ``result``; without ``scorer`` there is no model (published predictions)."""
        from fedbias_plugin.scoring.items import ids_hash
        from fedbias_plugin.training.fingerprint import tokenizer_fingerprints

        return cls(
            benchmark=benchmark.name,
            file=str(benchmark.path or ""),
            file_sha256=benchmark.sha256,
            items=result.n,
            ids_hash=ids_hash(benchmark.ids) if (found := getattr(result, "ids_hash", None)) is None else found,
            reduction=getattr(result, "reduction", ""),
            tie_rate=getattr(result, "tie_rate", 0.0),
            prefix_token=scorer.prefix_token if scorer else None,
            prefix_id=scorer.prefix_id if scorer else None,
            model=model_identity(scorer.model) if scorer else None,
            tokenizer=tokenizer_fingerprints(scorer.tokenizer) if scorer else None,
            adapter=adapter,
            versions=package_versions(),
            seed=seed,
            scoring=scoring,
        )

    def to_json(self) -> dict[str, Any]:
        """The attributes as plain JSON values."""
        return plain(vars(self))


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a score may depend on; nothing is imported."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def model_identity(model: Any) -> dict[str, Any]:
    """Which model this is: ``name_or_path``, ``class``, ``dtype``, ``parameters``, ``fingerprint`` and ``adapters``.

    ``adapters`` lists name, method and rank of the active ones and is empty for a plain model. 4-bit weights are
    counted unpacked where transformers can tell. ``fingerprint`` is of the weights without adapters.
    """
    from fedbias_plugin.training.fingerprint import base_fingerprint

    configs = getattr(model, "peft_config", None) or {}
    base = model.get_base_model() if configs else model
    active = getattr(model, "active_adapters", None) if configs else None
    return {
        "name_or_path": getattr(base.config, "name_or_path", "") or getattr(base.config, "_name_or_path", ""),
        "class": type(base).__name__,
        "dtype": str(getattr(base, "dtype", "")).removeprefix("torch."),
        "parameters": int(base.num_parameters() if hasattr(base, "num_parameters") else _count(base)),
        "fingerprint": base_fingerprint(model),
        "adapters": [
            {"name": name, "method": _method(config), "r": getattr(config, "r", None)}
            for name, config in configs.items()
            if not isinstance(active, (list, tuple)) or name in active
        ],
    }


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _method(config: Any) -> str:
    """``LORA`` of ``PeftType.LORA``, which is printed differently across Python versions."""
    return str(getattr(config, "peft_type", "")).split(".")[-1]
