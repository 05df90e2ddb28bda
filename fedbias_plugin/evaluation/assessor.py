"""Measures the live model on the run's benchmarks: probe items for weights, report items for headlines.

The split is made once per run by seed, stratified by bias type and domain, and is the same for every client and round.
Target terms, and pairs that share a sentence, stay whole (METRICS.md, sections 4 and 5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.evaluation.crows_pairs import CrowsPairs
from fedbias_plugin.evaluation.items import ids_hash
from fedbias_plugin.evaluation.probe import probe_indices, shared_sentences
from fedbias_plugin.evaluation.results import bias_score
from fedbias_plugin.evaluation.scorer import SentenceScorer
from fedbias_plugin.evaluation.stereoset import StereoSet

if TYPE_CHECKING:
    pass

Benchmark = CrowsPairs | StereoSet
LOADERS: dict[str, Callable[[Path], Benchmark]] = {"crows_pairs": CrowsPairs.load, "stereoset": StereoSet.load}
TEXTS_PER_ITEM = {"crows_pairs": 2, "stereoset": 3}
HEADLINE_KEYS = ("score", "ss", "lms", "icat", "n", "terms", "ci95", "tie_rate", "length_only")


def count_texts(benchmarks: Mapping[str, Benchmark]) -> int:
    """Texts that scoring every item of ``benchmarks`` takes."""
    return sum(TEXTS_PER_ITEM[name] * len(benchmark.ids) for name, benchmark in benchmarks.items())


@dataclass
class Measurement:
    """Bias of one model.

    Attributes:
        results: benchmark name -> JSON-ready result (``CrowsPairsResult`` or ``StereoSetResult``).
        bias_score: b of eq. 1, percentage points, from these results; None when nothing was measured.
        item_scores: benchmark name -> per-item scores, for paired tests later.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    bias_score: float | None = None
    item_scores: dict[str, Any] = field(default_factory=dict)


class BiasAssessor:
    """Scores models on the probe half (for weights) or on everything (for reports).

    Args:
        benchmarks: name -> loaded benchmark.
        fractions: name -> share of its items that are probe items, 0 to 1.
        reductions: name -> sentence-score reduction.
        alpha: alpha of eq. 1.
        seed: of the split and the bootstrap.
    """

    def __init__(
        self,
        benchmarks: Mapping[str, Benchmark],
        *,
        fractions: Mapping[str, float],
        reductions: Mapping[str, str],
        alpha: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.benchmarks = dict(benchmarks)
        self.reductions = dict(reductions)
        self.alpha = alpha
        self.seed = seed
        self.splits = {
            name: probe_indices(benchmark.strata, fractions[name], seed, benchmark.units)
            for name, benchmark in self.benchmarks.items()
        }
        self._shared = {
            name: shared_sentences(benchmark.sentences, *self.splits[name])
            for name, benchmark in self.benchmarks.items()
        }

    @property
    def probe_texts(self) -> int:
        """Texts that :meth:`assess` scores."""
        return sum(TEXTS_PER_ITEM[name] * len(probe) for name, (probe, _) in self.splits.items())

    @property
    def all_texts(self) -> int:
        """Texts that :meth:`evaluate` scores."""
        return count_texts(self.benchmarks)

    def assess(self, scorer: SentenceScorer) -> Measurement:
        """Bias on the probe items: what BAMA weighs a client by (eq. 1)."""
        measurement = Measurement()
        for name, benchmark in self.benchmarks.items():
            probe, _ = self.splits[name]
            if probe:
                scores = benchmark.score(scorer, self.reductions[name], probe)
                measurement.results[name] = benchmark.result(scores, seed=self.seed).to_json()  # type: ignore[arg-type]
        measurement.bias_score = self._bias_score(measurement.results)
        return measurement

    def evaluate(self, scorer: SentenceScorer) -> Measurement:
        """Bias on all items; the headline is the report half, ``full`` and ``probe`` stand beside it.

        ``shared_sentences`` says how many sentences of the report half stand in the probe half too.
        """
        measurement = Measurement()
        for name, benchmark in self.benchmarks.items():
            scores = benchmark.score(scorer, self.reductions[name])
            measurement.item_scores[name] = scores
            measurement.results[name] = self._headline(benchmark, scores, *self.splits[name])
        measurement.bias_score = self._bias_score(measurement.results)
        return measurement

    def _headline(
        self, benchmark: Benchmark, scores: Any, probe: Sequence[int], report: Sequence[int]
    ) -> dict[str, Any]:
        parts = {"full": benchmark.result(scores, seed=self.seed).to_json()}
        for part, indices in (("report", report), ("probe", probe)):
            if indices and probe:
                parts[part] = benchmark.result(scores.subset(indices), seed=self.seed).to_json()
        headline = "report" if "report" in parts else "full"
        summaries = {
            part: {key: result[key] for key in HEADLINE_KEYS if key in result} for part, result in parts.items()
        }
        shared = {"shared_sentences": self._shared[benchmark.name]} if headline == "report" else {}
        return {**parts[headline], "items": headline, **shared, **summaries}

    def _bias_score(self, results: Mapping[str, Mapping[str, Any]]) -> float | None:
        if not results:
            return None
        crows = results.get("crows_pairs", {}).get("score")
        stereotype = results.get("stereoset", {}).get("ss")
        return bias_score(self.alpha, crows, stereotype)

    def probe_record(self) -> dict[str, Any]:
        """Which items are probe items, to be stored with the run: ids, counts and a hash per benchmark."""
        record = {}
        for name, benchmark in self.benchmarks.items():
            probe, report = self.splits[name]
            ids = [benchmark.ids[index] for index in probe]
            record[name] = {
                "file": str(benchmark.path),
                "sha256": benchmark.sha256,
                "items": len(benchmark.ids),
                "probe_items": len(probe),
                "report_items": len(report),
                "shared_sentences": self._shared[name],
                "probe_ids_sha256": ids_hash(ids),
                "probe_ids": ids,
            }
        return record
