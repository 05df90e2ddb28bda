"""Bias against task loss at the end of every run: less bias that costs the task shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedbias_plugin.report.figures.arm_groups import ArmGroup, group_arms
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped
from fedbias_plugin.report.measures import crows_score, delta, heldout_loss, ss
from fedbias_plugin.report.study import Arm, Study
from fedbias_plugin.tracking.records import RoundRecord

TITLE = "Bias against held-out task loss"
Point = tuple[float, float]
Limits = tuple[tuple[float, float], tuple[float, float]]


def bias_against_loss(study: Study) -> Figure | LeftOut:
    """One point a run: mean Delta of the benchmarks against the loss on held-out clean rows.

    Not the recorded bias score, which ``--bama_alpha`` scales.
    """
    arms = [arm for arm in study.arms if _points(arm)]
    if not arms:
        return LeftOut(TITLE, "no run has both a score and a held-out loss.")
    groups = group_arms(arms)
    limits = _limits([point for arm in arms for point in _points(arm)], [_original(group) for group in groups])
    shown, more = capped([_panel(group, limits) for group in groups], "panels")
    caption = (
        "A point a run, in its last measured round: Delta = |score - 50|, mean of the benchmarks; lower is less "
        "biased, further left is better at the task. Star: the untouched model, mean over the panel's runs; where it "
        f"lies far from all runs, its numbers are written instead.{more}"
    )
    return Figure("bias_against_loss", TITLE, caption, shown)


def _points(arm: Arm) -> list[Point]:
    """Held-out loss (nats per token) and mean Delta (percentage points) of the arm's runs."""
    pairs = [(heldout_loss(run.last_measured), _bias(run.last_measured)) for run in arm.runs]
    return [(loss, bias) for loss, bias in pairs if loss is not None and bias is not None]


def _bias(record: RoundRecord) -> float | None:
    deltas = [value for score in (crows_score(record), ss(record)) if (value := delta(score)) is not None]
    return sum(deltas) / len(deltas) if deltas else None


def _original(group: ArmGroup) -> Point | None:
    firsts = [run.first for line in group.lines for run in line.arm.runs if run.first is not None]
    pairs = [(heldout_loss(first), _bias(first)) for first in firsts]
    known = [(loss, bias) for loss, bias in pairs if loss is not None and bias is not None]
    return (sum(x for x, _ in known) / len(known), sum(y for _, y in known) / len(known)) if known else None


def _panel(group: ArmGroup, limits: Limits) -> Panel:
    drawn = [(line, _points(line.arm)) for line in group.lines]
    original = _original(group)

    def draw(axes: Any) -> None:
        for line, points in drawn:
            axes.scatter(
                *zip(*points, strict=True), color=line.style.colour, marker=line.style.marker, s=52, label=line.label,
                edgecolors="white", linewidths=0.4, zorder=3,
            )  # fmt: skip
        if original is not None:
            _mark_original(axes, original, limits)
        axes.set(xlim=limits[0], ylim=limits[1])
        axes.grid(color="#e4e4e4", linewidth=0.7)
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel="held-out loss (nats per token)", ylabel="mean Delta (points)")

    said = "; ".join(f"{line.label}: {_spoken(points)}" for line, points in drawn)
    before = f" Original model: {_spoken([original])}." if original else ""
    return Panel(group.title, f"{TITLE}. {said}.{before}", draw)


def _limits(points: Sequence[Point], originals: Sequence[Point | None]) -> Limits:
    """The same axes for all panels; untouched models only where they do not squeeze all the other points together."""
    losses = [loss for loss, _ in points]
    low, high = min(losses), max(losses)
    spread = max(high - low, 0.02)
    near = [one for one in originals if one is not None and low - 3 * spread <= one[0] <= high + 3 * spread]
    losses += [loss for loss, _ in near]
    margin = 0.08 * max(max(losses) - min(losses), 0.02)
    highest = max(*(bias for _, bias in (*points, *near)), 1.0)
    return (min(losses) - margin, max(losses) + margin), (0.0, 1.12 * highest)


def _mark_original(axes: Any, original: Point, limits: Limits) -> None:
    """A star, or a line of text where it lies outside."""
    (left, right), (_, top) = limits
    if left <= original[0] <= right and original[1] <= top:
        axes.scatter(
            *original, marker="*", s=150, color="#F0E442", edgecolors="black", label="original model", zorder=2
        )
        return
    axes.text(
        0.99, 0.99, f"original model: loss {original[0]:.2f}, bias {original[1]:.1f}", transform=axes.transAxes,
        ha="right", va="top",
    )  # fmt: skip


def _spoken(points: list[Point]) -> str:
    loss = sum(point[0] for point in points) / len(points)
    bias = sum(point[1] for point in points) / len(points)
    return f"loss {loss:.3f}, mean Delta {bias:.2f}" + (" on average" if len(points) > 1 else "")
