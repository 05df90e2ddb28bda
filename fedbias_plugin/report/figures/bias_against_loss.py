"""Bias against task loss at the end of every run: less bias that costs the task shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedbias_plugin.report.figures.arm_groups import ArmGroup, group_arms
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped
from fedbias_plugin.report.measures import heldout_loss
from fedbias_plugin.report.study import Arm, Study

TITLE = "Bias against held-out task loss"
Point = tuple[float, float]
Limits = tuple[tuple[float, float], tuple[float, float]]


def bias_against_loss(study: Study) -> Figure | LeftOut:
    """One point a run: bias score of the global model against the loss on held-out clean rows."""
    arms = [arm for arm in study.arms if _points(arm)]
    if not arms:
        return LeftOut(TITLE, "no run has both a bias score and a held-out loss.")
    groups = group_arms(arms)
    limits = _limits([point for arm in arms for point in _points(arm)], [_original(group) for group in groups])
    shown, more = capped([_panel(group, limits) for group in groups], "panels")
    caption = (
        "A point a run, in its last measured round; lower is less biased, further left is better at the task. Star: "
        "the untouched model, mean over the panel's runs; where it lies far from all runs, its numbers are written "
        f"instead.{more}"
    )
    return Figure("bias_against_loss", TITLE, caption, shown)


def _points(arm: Arm) -> list[Point]:
    """Held-out loss (nats per token) and bias score (percentage points) of the arm's runs."""
    pairs = [(heldout_loss(run.last_measured), run.last_measured.global_.bias_score) for run in arm.runs]
    return [(loss, bias) for loss, bias in pairs if loss is not None and bias is not None]


def _original(group: ArmGroup) -> Point | None:
    firsts = [run.first for line in group.lines for run in line.arm.runs if run.first is not None]
    pairs = [(heldout_loss(first), first.global_.bias_score) for first in firsts]
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
        axes.set(xlabel="held-out loss (nats per token)", ylabel="bias score (points)")

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
    return f"loss {loss:.3f}, bias score {bias:.2f}" + (" on average" if len(points) > 1 else "")
