"""Bias and fairness against bytes: what a method has cost when it stands where it stands."""

from __future__ import annotations

from fedbias_plugin.metrics.base import metric_class
from fedbias_plugin.study.drawing import MOST_LINES, Figure, figure, pieces
from fedbias_plugin.study.frame import Arm, Study
from fedbias_plugin.study.lines import Line, line_panel
from fedbias_plugin.study.study_file import DoseFigure, fits

UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))


def against_bytes(study: Study, spec: DoseFigure) -> list[Figure]:
    """Metrics (y) against the bytes that all clients had sent and received by then (x): a line an arm, a point a round.

    Without metrics in ``spec``: those with an ideal, and what others show by round beside their value.
    """
    sent = study.by_round("payload/total")["value"].dropna()
    if sent.empty:
        return []
    unit, size = next((name, size) for name, size in UNITS if sent.max() >= size or size == 1)
    arms = [arm for arm in study.arms if fits(arm.facts, spec.where)]
    panels = []
    for metric in spec.metric or shown_metrics(study):
        shown, ideal = metric_class(metric), metric_class(metric.partition("/")[0]).ideal
        lines = [line for arm in arms if (line := _line(study, arm, metric, size)) is not None]
        labels = {"xlabel": f"{unit} sent and received", "ylabel": shown.short or shown.title}
        ideal = None if "/" in metric else ideal
        panels += [line_panel(shown.title, part, ideal, **labels) for part in pieces(lines, MOST_LINES) if part]
    caption = (
        "Line: mean over seeds, a point a measured round, from the untouched model at 0; band: lowest to highest seed; "
        f"n: seeds. x: {unit} that all clients together have sent and received up to a round, by definition of the "
        "method (docs/metrics.md). Dashed: the ideal."
    )
    return figure(spec.id, spec.title, caption, panels)


def shown_metrics(study: Study) -> list[str]:
    """The metrics with an ideal, and the numbers beside others that are shown by round."""
    aimed = [name for name in study.metrics if metric_class(name).ideal is not None]
    return [*aimed, *(f"{name}/{part}" for name in study.metrics for part in metric_class(name).by_round)]


def _line(study: Study, arm: Arm, metric: str, size: int) -> Line | None:
    """Of an arm whose runs know their bytes; None of another, or where nothing was measured."""
    values = study.by_round(metric)["value"].dropna()
    own = values[values.index.get_level_values("run").isin([run.name for run in arm.runs])].rename("y").to_frame()
    own["x"] = study.by_round("payload/total")["value"].reindex(own.index)
    own.loc[own.index.get_level_values("round") == 0, "x"] = 0.0
    own = own.dropna()
    if not own["x"].any():
        return None
    rounds = own.groupby(level="round").agg(x=("x", "mean"), y=("y", "mean"), low=("y", "min"), high=("y", "max"))
    band = (list(rounds["low"]), list(rounds["high"])) if len(arm.runs) > 1 else None
    return Line(arm.label, list(rounds["x"] / size), list(rounds["y"]), str(len(arm.runs)), band)
