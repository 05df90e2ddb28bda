"""Measures a model with the metrics of a run: probe items for weights, report items for headlines.

The split is made once per run by seed, stratified by bias type and domain, and is the same for every client and round.
Target terms, and pairs that share a sentence, stay whole (docs/metrics.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbias_plugin.metrics.base import Block, Metric, delta
from fedbias_plugin.metrics.bias_score import bias_blocks, bias_score
from fedbias_plugin.metrics.probe import probe_indices, shared_sentences

if TYPE_CHECKING:
    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass
class Measurement:
    """What was measured of one model.

    Attributes:
        metrics: name -> block (see :meth:`Metric.block`).
        bias_score: b of eq. 1, percentage points, from these; None when nothing that counts was measured.
        item_scores: name -> per-item scores, for rules and for paired tests; those with ``ids`` are stored.
    """

    metrics: dict[str, Block] = field(default_factory=dict)
    bias_score: float | None = None
    item_scores: dict[str, Any] = field(default_factory=dict)


class Suite:
    """The metrics of a run, prepared, and which of their items are probe and which report items.

    Args:
        metrics: in the order in which they are recorded; prepared.
        alpha: alpha of eq. 1.
        seed: of the split and the bootstrap.

    Attributes:
        splits: name -> (probe, report) indices, for metrics of clients.
    """

    def __init__(self, metrics: Sequence[Metric], *, alpha: float = 0.5, seed: int = 0) -> None:
        self.metrics = list(metrics)
        self.alpha, self.seed = alpha, seed
        self.of_clients = {metric.name: metric for metric in metrics if metric.of_clients}
        self.splits = {
            name: probe_indices(metric.strata, metric.probe_fraction, seed, metric.units)
            for name, metric in self.of_clients.items()
        }
        self._shared = {
            name: shared_sentences(metric.sentences, *self.splits[name]) for name, metric in self.of_clients.items()
        }

    @property
    def of_own_models(self) -> list[Metric]:
        """Those of each client's own model, which no measurement here is of."""
        return [metric for metric in self.metrics if metric.of_model == "own"]

    @property
    def probe_texts(self) -> int:
        """Texts that :meth:`assess` reads, about."""
        counts = ((len(self.splits[name][0]), metric) for name, metric in self.of_clients.items())
        return sum(metric.text_count // max(1, len(metric.ids)) * items for items, metric in counts)

    def texts_of(self, *, whole: bool = True) -> int:
        """Texts that :meth:`evaluate` reads."""
        return sum(metric.text_count for metric in self.metrics if whole or metric.every_round)

    def assess(self, scorer: SentenceScorer, also: Sequence[str] = (), *, on_half: bool = False) -> Measurement:
        """A client's model on the probe items, what it is weighed by (eq. 1); and by the metrics ``also`` on all.

        ``on_half``: by those on the half of their items alone that they keep for comparing clients (``compared``).
        """
        measurement = Measurement()
        for name, metric in self.of_clients.items():
            probe, _ = self.splits[name]
            if probe:
                scores = measurement.item_scores[name] = metric.measure(scorer, probe)
                measurement.metrics[name] = self._block(metric, scores)
        for metric in self.metrics:
            if metric.name in also and not metric.of_clients:
                half = getattr(metric, "compared", None) if on_half else None
                if (found := metric.measure(scorer, half)) is not None:
                    measurement.metrics[metric.name] = self._block(metric, found)
        return self._with_bias_score(measurement)

    def as_assessed(self, item_scores: Mapping[str, Any]) -> dict[str, Any]:
        """Of the scores of all items (:meth:`evaluate`), those of the probe items and of the half that clients are
        compared on, as :meth:`assess` would give."""
        probes = {name: probe for name, (probe, _) in self.splits.items() if probe and name in item_scores}
        halves = {name: scores.compared for name, scores in item_scores.items() if hasattr(scores, "compared")}
        return halves | {name: item_scores[name].subset(probe) for name, probe in probes.items()}

    @property
    def report_items(self) -> dict[str, Sequence[int]]:
        """Metric -> its report items, of those that have probe items too."""
        return {name: report for name, (probe, report) in self.splits.items() if probe and report}

    def evaluate(self, scorer: SentenceScorer, *, whole: bool = True) -> Measurement:
        """A model on all items; the headline is the report half, ``full`` and ``probe`` stand beside it.

        Without ``whole`` by those metrics alone that are measured in every round.

        ``shared_sentences`` says how many sentences of the report half stand in the probe half too.
        """
        measurement = Measurement()
        for metric in self.metrics:
            scores = metric.measure(scorer) if metric.text_count and (whole or metric.every_round) else None
            if scores is None:
                continue
            measurement.item_scores[metric.name] = scores
            if metric.of_clients:
                measurement.metrics[metric.name] = self._headline(metric, scores, *self.splits[metric.name])
            else:
                measurement.metrics[metric.name] = self._block(metric, scores)
        return self._with_bias_score(measurement)

    def _block(self, metric: Metric, scores: Any) -> Block:
        return metric.block(metric.result(scores, seed=self.seed))

    def _headline(self, metric: Metric, scores: Any, probe: Sequence[int], report: Sequence[int]) -> Block:
        parts = {"full": self._block(metric, scores)}
        for part, indices in (("report", report), ("probe", probe)):
            if indices and probe:
                parts[part] = self._block(metric, scores.subset(indices))
        headline = "report" if "report" in parts else "full"
        shared = {"shared_sentences": self._shared[metric.name]} if headline == "report" else {}
        summaries = {
            part: {key: block[key] for key in metric.of_parts if key in block} for part, block in parts.items()
        }
        return {**parts[headline], "items": headline, **shared, **summaries}

    def _with_bias_score(self, measurement: Measurement) -> Measurement:
        distances = [distance for block in bias_blocks(measurement.metrics) if (distance := delta(block)) is not None]
        measurement.bias_score = bias_score(self.alpha, distances) if distances else None
        return measurement

    def probe_record(self) -> dict[str, Any]:
        """Which items are probe items, to be stored with the run: ids, counts and a hash per metric."""
        from fedbias_plugin.scoring.items import ids_hash

        record = {}
        for name, metric in self.of_clients.items():
            probe, report = self.splits[name]
            ids = [metric.ids[index] for index in probe]
            record[name] = {
                "file": str(metric.path) if metric.path else None,
                "sha256": metric.sha256 or ids_hash(metric.ids),
                "items": len(metric.ids),
                "probe_items": len(probe),
                "report_items": len(report),
                "shared_sentences": self._shared[name],
                "probe_ids_sha256": ids_hash(ids),
                "probe_ids": ids,
            }
        return record
