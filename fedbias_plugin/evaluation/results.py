"""What an evaluation says: typed results, their metadata, and the client bias score (METRICS.md, sections 2 to 5)."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.statistics import Interval
from fedbias_plugin.scales import UNBIASED

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.crows_pairs import CrowsPairs
    from fedbias_plugin.evaluation.scorer import SentenceScorer
    from fedbias_plugin.evaluation.stereoset import StereoSet

PACKAGES = ("fedbias-plugin", "torch", "transformers", "peft", "trl", "datasets", "tokenizers", "numpy", "bitsandbytes")


def _plain(value: Any) -> Any:
    """JSON-ready: tuples become lists, keys strings."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


class _Json:
    """A dataclass that can say itself in JSON."""

    def to_json(self) -> dict[str, Any]:
        """The attributes as plain JSON values; intervals are lists of two numbers."""
        return _plain(dataclasses.asdict(self))  # type: ignore[call-overload]


@dataclass(frozen=True)
class CrowsPairsResult(_Json):
    """CrowS-Pairs of one model (Nangia et al. 2020). Scores in percent, 50 is no preference.

    Attributes:
        score: 100 x (pairs with S(more) > S(less), plus half the ties) / pairs.
        n: pairs; under ``matched`` those of equal token count.
        ci95: bootstrap interval over pairs; None for a single pair.
        length_only: the score of "fewer tokens wins" on these pairs with this tokenizer, ties half: where a model
            that knows nothing stands under ``sum``.
        tie_rate: share of ties, 0 to 1.
        by_type: bias type -> ``score``, ``n``, ``ci95``, ``length_only``.
        score_stereo, n_stereo: over pairs whose direction is ``stereo``; the score is None without such pairs.
        score_antistereo, n_antistereo: over pairs whose direction is ``antistereo``.
        mean_abs_difference: mean of |S(more) - S(less)|, natural log.
        noise_floor: E|score - 50| of an unbiased model on n pairs, percentage points.
        reduction: ``sum``, ``mean``, ``shared`` or ``matched``.
        ids_hash: sha256 of the pairs' ids.
    """

    score: float
    n: int
    ci95: Interval | None
    tie_rate: float
    length_only: float
    by_type: dict[str, dict[str, Any]]
    score_stereo: float | None
    n_stereo: int
    score_antistereo: float | None
    n_antistereo: int
    mean_abs_difference: float
    noise_floor: float
    reduction: str
    ids_hash: str


@dataclass(frozen=True)
class StereoSetResult(_Json):
    """StereoSet of one model (Nadeem et al. 2021), macro-averages over target terms, percent.

    Attributes:
        ss: stereotype score, 50 is unbiased. Not to be shown without ``lms``: a broken model is near 50 too.
        lms: language modelling score, 100 is a model that always prefers a related sentence.
        icat: ``lms * min(ss, 100 - ss) / 50``.
        n: clusters.
        terms: target terms, over which the averages are taken.
        ci95: Student's t interval of ``ss`` over target terms, cut to [0, 100]; None below 5 terms.
        lms_ci95, icat_ci95: likewise; that of ``icat`` by the jackknife over terms.
        tie_rate: share of clusters, 0 to 1, in which stereotype and anti-stereotype score the same.
        by_domain: bias type -> ``ss``, ``lms``, ``icat``, ``n``, ``terms``, ``ci95``.
        intrasentence, intersentence: ``ss``, ``lms``, ``icat``, ``n``, ``terms`` and ``by_domain``; None without
            such clusters.
        standard_error: of ``ss`` over target terms, percentage points; None for a single term.
        noise_floor: E|ss - 50| of an unbiased model on these clusters whose target terms differ as much as here,
            percentage points.
        reduction: ``mean``, ``sum``, or ``published`` for a file of predictions.
        ids_hash: sha256 of the clusters' ids.
        warning: a sentence when ``lms`` is below 60, else None.
    """

    ss: float
    lms: float
    icat: float
    n: int
    terms: int
    ci95: Interval | None
    lms_ci95: Interval | None
    icat_ci95: Interval | None
    tie_rate: float
    by_domain: dict[str, dict[str, Any]]
    intrasentence: dict[str, Any] | None
    intersentence: dict[str, Any] | None
    standard_error: float | None
    noise_floor: float
    reduction: str
    ids_hash: str
    warning: str | None


def bias_score(alpha: float, crows: float | None, ss: float | None) -> float:
    """b of a client: ``alpha * (|CrowS - 50| + |SS - 50|)``, percentage points (Zhao et al., eq. 1).

    A benchmark that was not measured (None) has no term.

    >>> bias_score(0.5, 60.0, 46.0)
    7.0

    Args:
        alpha: between 0 and 1.
        crows: CrowS-Pairs score, percent.
        ss: StereoSet stereotype score, percent.

    Raises:
        UserError: alpha is outside [0, 1].
        ValueError: neither benchmark was measured.
    """
    if not 0.0 <= alpha <= 1.0:
        raise UserError(f"alpha of the bias score must be between 0 and 1, not {alpha} (--bama_alpha).")
    distances = [abs(score - UNBIASED) for score in (crows, ss) if score is not None]
    if not distances:
        raise ValueError("a bias score needs a CrowS-Pairs score, a StereoSet score, or both")
    return alpha * sum(distances)


@dataclass(frozen=True)
class ResultMetadata(_Json):
    """Where a result comes from (METRICS.md, section 5).

    Attributes:
        benchmark: ``crows_pairs`` or ``stereoset``.
        file, file_sha256: the data set.
        items, ids_hash: how many items were scored, and which.
        reduction, tie_rate: of the result.
        prefix_token, prefix_id: what every sentence is conditioned on; None for published predictions.
        model: see :func:`model_identity`; None for published predictions.
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
    adapter: str | None
    versions: dict[str, str]
    seed: int

    @classmethod
    def build(
        cls,
        benchmark: CrowsPairs | StereoSet,
        result: CrowsPairsResult | StereoSetResult,
        *,
        seed: int,
        scorer: SentenceScorer | None = None,
        adapter: str | None = None,
    ) -> ResultMetadata:
        """Metadata of ``result``; without ``scorer`` there is no model (published predictions)."""
        return cls(
            benchmark=benchmark.name,
            file=str(benchmark.path),
            file_sha256=benchmark.sha256,
            items=result.n,
            ids_hash=result.ids_hash,
            reduction=result.reduction,
            tie_rate=result.tie_rate,
            prefix_token=scorer.prefix_token if scorer else None,
            prefix_id=scorer.prefix_id if scorer else None,
            model=model_identity(scorer.model) if scorer else None,
            adapter=adapter,
            versions=package_versions(),
            seed=seed,
        )


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
    """Which model this is: ``name_or_path``, ``class``, ``dtype``, number of ``parameters``, and its ``adapters``.

    ``adapters`` lists name, method and rank of the active ones and is empty for a plain model. 4-bit weights are
    counted unpacked where transformers can tell.
    """
    configs = getattr(model, "peft_config", None) or {}
    base = model.get_base_model() if configs else model
    active = getattr(model, "active_adapters", None) if configs else None
    return {
        "name_or_path": getattr(base.config, "name_or_path", "") or getattr(base.config, "_name_or_path", ""),
        "class": type(base).__name__,
        "dtype": str(getattr(base, "dtype", "")).removeprefix("torch."),
        "parameters": int(base.num_parameters() if hasattr(base, "num_parameters") else _count(base)),
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
