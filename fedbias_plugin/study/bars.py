"""The figures of a study that are no lines: declared differences, categories, who holds what, and what an arm costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedbias_plugin.metrics.base import Metric, metric_class
from fedbias_plugin.study.comparisons import Answer
from fedbias_plugin.study.drawing import Figure, Panel, figure, pieces, short
from fedbias_plugin.study.frame import Study
from fedbias_plugin.study.runs import Run, mapping
from fedbias_plugin.study.statistics import Spread
from fedbias_plugin.tracking.numbers import VIEWS

PHASES = {
    "seconds/train": ("#0072B2", "training"),
    "seconds/assess": ("#E69F00", "scoring clients"),
    "seconds/aggregate": ("#000000", "aggregation"),
    "seconds/evaluate": ("#B7DDF2", "scoring the global model"),
}
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
LETTERS = "ABCDEF"
MOST_ROWS, ROW_HEIGHT = 14, 30
MOST_CLIENTS, MOST_LABELS = 24, 16


def forest(answers: Sequence[Answer]) -> list[Figure]:
    """The pooled difference of every declared comparison with its interval; a dot is one pair of arms."""
    rows: dict[str, list[tuple[str, Spread, list[float]]]] = {}
    for answer in answers:
        for outcome in answer.pooled:
            if outcome.tested is None:
                continue
            dots = [own.difference.mean for pair in answer.pairs if (own := pair.outcomes[outcome.metric].tested)]
            rows.setdefault(outcome.metric, []).append((answer.comparison.title, outcome.tested.difference, dots))
    panels = [_forest_panel(metric_class(metric), own) for metric, own in rows.items()]
    caption = (
        "Square and line: mean difference over pairs of arms and its 95% interval over seeds; dot: one pair. Left of 0 "
        "the arm has less, right more. n: pairs x seeds."
    )
    return figure("differences", "Declared differences", caption, panels)


def _forest_panel(metric: type[Metric], rows: Sequence[tuple[str, Spread, list[float]]]) -> Panel:
    unit = "difference (points)" if metric.ideal == 50.0 else "difference"

    def draw(axes: Any) -> None:
        axes.axvline(0, color="#555555", linewidth=1)
        for place, (name, value, dots) in enumerate(rows):
            axes.plot(value.ci95 or (value.mean, value.mean), [place, place], color="black", linewidth=1.6)
            axes.plot(dots, [place] * len(dots), "o", color="#999999", markersize=3.5)
            axes.plot([value.mean], [place], "s", color="black", markersize=6)
            label = f"{short(name, 42)} (n = {len(dots)} x {value.n})"
            axes.text(0.0, place - 0.28, label, transform=axes.get_yaxis_transform(), va="bottom", bbox=LABEL_BOX)
        axes.set(ylim=(len(rows) - 0.5, -0.85), yticks=[], xlabel=unit)
        axes.spines["left"].set_visible(False)

    said = "; ".join(f"{name}: {value.mean:+.{metric.digits}f}" for name, value, _ in rows)
    return Panel(f"{metric.title}: arm minus baseline", f"{said}.", draw, height=46 + ROW_HEIGHT * len(rows))


def categories(study: Study) -> list[Figure]:
    """Metrics by category (rows) and arm (columns) in the last measured round, colours centred on the ideal."""
    own = study.last[~study.last["part"].isin(["", *VIEWS])]
    counts = {arm.label: len(arm.runs) for arm in study.arms}
    panels = []
    for metric in study.aimed:
        table = own[own["metric"] == metric].pivot_table(index="part", columns="arm", values="value", sort=False)
        for part in pieces(list(table.columns), len(LETTERS)):
            panels.append(_category_panel(metric, table[part], table, counts))
    caption = "Mean over seeds (n); the columns A, B, ... are named below each panel. White: the ideal."
    return figure("categories", "Bias by category", caption, panels)


def _category_panel(metric: str, part: pd.DataFrame, whole: pd.DataFrame, counts: Mapping[str, int]) -> Panel:
    ideal = metric_class(metric).ideal
    reach = max((whole - ideal).abs().max().max(), 10.0 if ideal == 50.0 else 1e-9)
    labels = [f"{letter}: {short(name, 34)} (n = {counts[name]})" for letter, name in zip(LETTERS, part, strict=False)]

    def draw(axes: Any) -> None:
        axes.pcolormesh(part.to_numpy(), cmap="PuOr_r", vmin=ideal - reach, vmax=ideal + reach, edgecolors="white")
        for (row, column), value in np.ndenumerate(part.to_numpy()):
            text = f"{value:.0f}" if ideal == 50.0 else f"{value:.2g}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center")
        axes.set_yticks(np.arange(len(part)) + 0.5, [short(name, 20) for name in part.index])
        axes.set_xticks(np.arange(len(labels)) + 0.5, LETTERS[: len(labels)])
        axes.invert_yaxis()
        for label in labels:
            axes.plot([], [], linestyle="none", label=label)

    said = "; ".join(f"{name}: {part[name].min():.0f} to {part[name].max():.0f}" for name in part.columns)
    return Panel(metric_class(metric).title, f"By category. {said}.", draw, labels, 40 + 19 * len(part))


def holdings(study: Study) -> list[Figure]:
    """A panel a way in which rows were dealt: clients (rows) by labels (columns), numbers of rows written in."""
    seen: dict[str, tuple[Run, dict[str, dict[str, int]]]] = {}
    for run in study.runs:
        held = held_labels(run.manifest)
        if held:
            seen.setdefault(repr(held), (run, held))
    panels = [_holdings_panel(_dealt(run), held) for run, held in seen.values()]
    caption = (
        "Rows of every client by label, those it trains on and those it keeps for a test; darker is more. Runs that "
        "were dealt alike share a panel."
    )
    return figure("who_holds_what", "Who holds which labels", caption, panels)


def held_labels(manifest: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Client -> label -> rows, of a run's manifest; empty where it counts no labels."""
    held: dict[str, dict[str, int]] = {}
    clients = manifest.get("clients")
    for client in clients if isinstance(clients, list) else ():
        parts = [mapping(mapping(part).get("labels")) for part in (client, mapping(client).get("test"))]
        counts: Counter[str] = Counter()
        for label, rows in (pair for part in parts for pair in part.items()):
            counts[label] += rows if isinstance(rows, int) else 0
        if counts:
            held[str(mapping(client).get("client"))] = dict(sorted(counts.items()))
    return held


def _dealt(run: Run) -> str:
    settings = run.settings
    dealt = str(settings.get("partitioner") or settings.get("scenario") or "")
    if dealt == "dirichlet":
        dealt += f" alpha {settings.get('dirichlet_alpha')}"
    return f"{dealt} seed {settings.get('seed')}"


def _holdings_panel(title: str, held: Mapping[str, Mapping[str, int]]) -> Panel:
    whole = pd.DataFrame.from_dict(held, orient="index").sort_index(axis=1).fillna(0).astype(int)
    part, totals, most = whole.iloc[:MOST_CLIENTS, :MOST_LABELS], whole.sum(axis=1), whole.idxmax(axis=1)
    top = part.to_numpy().max()

    def draw(axes: Any) -> None:
        axes.pcolormesh(part.to_numpy(), cmap="Blues", vmin=0, vmax=max(1, top), edgecolors="white")
        for (row, column), rows in np.ndenumerate(part.to_numpy()):
            colour = "white" if rows > 0.6 * top else "black"
            axes.text(column + 0.5, row + 0.5, str(rows), ha="center", va="center", color=colour, fontsize=7)
        axes.set_yticks(np.arange(len(part)) + 0.5, [f"{client} (n = {totals[client]})" for client in part.index])
        axes.set_xticks(np.arange(part.shape[1]) + 0.5, [short(name, 18) for name in part], rotation=60, ha="right")
        axes.invert_yaxis()

    said = "; ".join(
        f"client {client}: {totals[client]} rows, {whole.at[client, label]} of them {label}"
        for client, label in most[part.index].items()
    )
    left = len(whole) - len(part)
    said += f"; {left} more clients are not shown" if left else ""
    return Panel(title, f"Rows by client and label. {said}.", draw, height=120 + 19 * len(part))


def cost(study: Study) -> list[Figure]:
    """Seconds by phase, stacked, and the peak of memory, of every arm."""
    means = study.means.head(MOST_ROWS)
    time = means[[name for name in PHASES if name in means]].dropna(how="all")
    if time.empty:
        return []
    memory = means.loc[time.index, ["peak_memory_mib"]] / 1024
    names = [f"{short(arm.label, 38)} (n = {len(arm.runs)})" for arm in study.arms if arm.label in time.index]
    panels = [_bars_panel("Time", "seconds a run", time, names), _bars_panel("Peak memory", "GiB", memory, names)]
    caption = "Wall-clock seconds of a whole run and the most memory of its process or GPU, means over seeds (n)."
    return figure("time_and_memory", "Time by phase and peak memory", caption, panels)


def _bars_panel(title: str, unit: str, table: pd.DataFrame, names: Sequence[str]) -> Panel:
    totals = table.sum(axis=1)
    labels = [PHASES[name][1] for name in table.columns if name in PHASES]

    def draw(axes: Any) -> None:
        left = totals * 0.0
        for place, column in enumerate(table.columns):
            colour, widths = PHASES.get(column, ("#009E73", ""))[0], table[column].fillna(0.0)
            label = labels[place] if labels else None
            axes.barh(range(len(table)), widths, 0.42, left=left, color=colour, label=label)
            left = left + widths
        for row, (name, total) in enumerate(zip(names, totals, strict=True)):
            shown = f"{total:,.2f}" if total < 10 else f"{total:,.0f}"
            axes.text(0, row - 0.27, name, va="bottom")
            axes.text(total + 0.015 * totals.max(), row, shown, va="center")
        axes.set(xlim=(0, (totals.max() or 1.0) * 1.25), ylim=(len(table) - 0.6, -0.85), yticks=[], xlabel=unit)
        axes.locator_params(axis="x", nbins=5)

    said = "; ".join(f"{label}: {total:.2f}" for label, total in totals.items())
    return Panel(title, f"{unit}. {said}.", draw, labels, 48 + 33 * len(table))
