"""What ``fedbias evaluate`` measures: a model, an adapter on it, or published predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedbias_plugin.evaluation.results import ResultMetadata
from fedbias_plugin.evaluation.scorer import SentenceScorer
from fedbias_plugin.evaluation.stereoset import StereoSet

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.assessor import Benchmark


def measure(
    benchmarks: Mapping[str, Benchmark],
    scorer: SentenceScorer,
    *,
    reductions: Mapping[str, str],
    seed: int,
    adapter: str | None = None,
) -> dict[str, Any]:
    """Every benchmark on all its items.

    Returns:
        benchmark name -> result as in ``metrics.jsonl``, and ``metadata`` by benchmark (METRICS, section 5).
    """
    report: dict[str, Any] = {}
    metadata = {}
    for name, benchmark in benchmarks.items():
        result: Any = benchmark.result(benchmark.score(scorer, reductions[name]), seed=seed)  # type: ignore[arg-type]
        report[name] = result.to_json()
        metadata[name] = ResultMetadata.build(benchmark, result, seed=seed, scorer=scorer, adapter=adapter).to_json()
    report["metadata"] = metadata
    return report


def measure_predictions(stereoset: StereoSet, path: str, *, seed: int) -> dict[str, Any]:
    """Published per-sentence StereoSet predictions, in the shape of :func:`measure`."""
    result = stereoset.result(stereoset.score_predictions(path), seed=seed)
    metadata = ResultMetadata.build(stereoset, result, seed=seed)
    return {"stereoset": result.to_json(), "metadata": {"stereoset": metadata.to_json()}}
