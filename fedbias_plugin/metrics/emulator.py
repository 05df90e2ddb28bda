"""The emulator model of offsite tuning beside the whole one: its bias and its loss are other numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.metrics.base import Block, Metric, Source, metric_class
from fedbias_plugin.metrics.formatting import interval, item_note, number, with_interval

if TYPE_CHECKING:
    from fedbias_plugin.metrics.suite import Measurement
    from fedbias_plugin.scoring.scorer import SentenceScorer

LOSS = "heldout_loss"


@dataclass
class Emulator(Metric):
    """Held-out loss of the model that clients train in (``--trainable offsite``), and its other scores beside it.

    Not measured by itself: the session measures that model as it does the whole one. For every metric NAME there are
    ``NAME``, ``NAME_ci95``, ``NAME_n``, ``NAME_gap``, the whole model's number minus this one's, and ``NAME_gap_ci95``,
    paired by items. ``loss_gap`` and ``loss_gap_ci95`` are of the losses.
    """

    name = "emulator"
    is_named = False
    title = "emulator model: held-out loss"
    short = "emulator model: held-out loss"
    higher_is_better = False
    digits = 4
    of_model = "beside"
    section = "Emulator"
    panels = (
        ("Emulator model: held-out loss, nats per token", ("value",)),
        ("Emulator model: CrowS-Pairs score and SS, %", ("crows_pairs", "stereoset")),
        ("Whole model minus emulator model", ("loss_gap", "crows_pairs_gap", "stereoset_gap")),
    )
    words: ClassVar[Mapping[str, str]] = {
        "loss_gap": "loss, whole minus emulator",
        "crows_pairs": "CrowS-Pairs score",
        "crows_pairs_gap": "CrowS-Pairs, whole minus emulator",
        "stereoset": "StereoSet SS",
        "stereoset_gap": "StereoSet SS, whole minus emulator",
    }
    beside = ("perplexity", "loss_gap", "crows_pairs", "crows_pairs_gap", "stereoset", "stereoset_gap")

    @property
    def is_on(self) -> bool:
        """Never by itself."""
        return False

    def prepare(self, source: Source) -> None:
        """It reads nothing of its own."""

    @property
    def text_count(self) -> int:
        """None of its own."""
        return 0

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> None:
        """Nothing by itself."""

    def result(self, scores: Any, *, seed: int) -> Any:
        """There are no scores by itself."""
        raise NotImplementedError

    @classmethod
    def line(cls, block: Block) -> str:
        """The loss, and every other score with its interval."""
        return "; ".join(f"{label} {shown} ({note})" for label, shown, note in _parts(block))

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """A row a score."""
        yield cls.title, number(block["value"], cls.digits), interval(block.get("ci95")), item_note(block)
        for name in _others(block):
            metric, part = metric_class(name), _part(block, name)
            shown = number(part["value"], metric.digits), interval(part.get("ci95"))
            yield f"emulator model: {metric.short}", *shown, item_note(part)
        for name in (LOSS, *_others(block)):
            key = "loss_gap" if name == LOSS else f"{name}_gap"
            if block.get(key) is not None:
                shown = number(block[key], metric_class(name).digits), interval(block.get(f"{key}_ci95"))
                yield f"whole model minus emulator model: {metric_class(name).short}", *shown, "the same items"


def emulator_block(
    of_emulator: Measurement, of_whole: Measurement, report: Mapping[str, Sequence[int]], *, seed: int
) -> Block:
    """The block of :class:`Emulator`, from what was measured of both models by the same metrics on the same items.

    Args:
        of_emulator, of_whole: of the two models.
        report: metric -> items of its value, where they are not all.
        seed: of the bootstrap.
    """
    own, whole = of_emulator.metrics, of_whole.metrics
    loss = own.get(LOSS, {})
    block: Block = {"value": loss.get("value"), "ideal": None, "ci95": loss.get("ci95"), "noise_floor": None}
    block |= {"n": loss.get("n", 0)}
    if loss.get("value") is not None:
        block |= {"perplexity": math.exp(min(loss["value"], 700)), "loss_gap": whole[LOSS]["value"] - loss["value"]}
        block |= {"loss_gap_ci95": _loss_gap(of_emulator.item_scores.get(LOSS), of_whole.item_scores.get(LOSS))}
    for name, found in own.items():
        if name != LOSS and found.get("value") is not None and whole.get(name, {}).get("value") is not None:
            scores = of_emulator.item_scores.get(name), of_whole.item_scores.get(name)
            block |= {name: found["value"], f"{name}_ci95": found.get("ci95"), f"{name}_n": found.get("n")}
            block |= {f"{name}_gap": whole[name]["value"] - found["value"]}
            block |= {f"{name}_gap_ci95": _gap(name, scores, report.get(name), seed)}
    return block


def _gap(name: str, scores: tuple[Any, Any], report: Sequence[int] | None, seed: int) -> tuple[float, float] | None:
    """The interval of the second model minus the first on the same items; None where the metric has none by items."""
    import numpy as np

    from fedbias_plugin.metrics.statistics import paired_items

    if not all(hasattr(one, "ids") for one in scores):
        return None
    found = [metric_class(name).outcomes(vars(one if report is None else one.subset(report))) for one in scores]
    if found[0] is None or found[1] is None:
        return None
    (first, groups), (second, _) = found[0], found[1]
    counted = ~np.isnan(first) & ~np.isnan(second)
    if not counted.any():
        return None
    return paired_items(first[counted], second[counted], None if groups is None else groups[counted], seed=seed).ci95


def _loss_gap(own: Any, whole: Any) -> tuple[float, float] | None:
    """Of the difference of two losses per token on the same rows, by the jackknife over rows."""
    from fedbias_plugin.metrics.statistics import jackknife_interval

    if own is None or whole is None or len(own.nll) < 2 or list(own.tokens) != list(whole.tokens):
        return None
    nll, tokens = whole.nll - own.nll, own.tokens
    without_one = (nll.sum() - nll) / (tokens.sum() - tokens)
    return jackknife_interval(float(nll.sum() / tokens.sum()), without_one, possible=(-math.inf, math.inf))


def _others(block: Block) -> list[str]:
    """The metrics whose values stand beside the loss."""
    return [key.removesuffix("_gap") for key in block if key.endswith("_gap") and key != "loss_gap"]


def _part(block: Block, name: str) -> Block:
    """The numbers of one of them, under the keys of a block."""
    return {"value": block[name], "ci95": block[f"{name}_ci95"], "n": block[f"{name}_n"]}


def _parts(block: Block) -> Iterator[tuple[str, str, str]]:
    if block["value"] is not None:
        yield Emulator.short, with_interval(block["value"], block.get("ci95"), 2), item_note(block)
    for name in _others(block):
        metric, part = metric_class(name), _part(block, name)
        yield metric.short, with_interval(part["value"], part["ci95"], metric.digits), item_note(part)
