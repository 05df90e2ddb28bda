"""Who holds what: the rows of every client by label, where rows have labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedbias_plugin.study.drawing import Figure, Panel, figure, short
from fedbias_plugin.study.frame import Study
from fedbias_plugin.study.runs import Run, mapping

MOST_CLIENTS, MOST_LABELS = 24, 16


def holdings(study: Study) -> list[Figure]:
    """A panel a way in which rows were dealt: clients (rows) by labels (columns), numbers of rows written in."""
    seen: dict[str, tuple[Run, dict[str, dict[str, int]]]] = {}
    for run in study.runs:
        held = held_labels(run.manifest)
        if held:
            seen.setdefault(repr(held), (run, held))
    panels = [_panel(_title(run), held) for run, held in seen.values()]
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
        counts: dict[str, int] = {}
        for label, rows in (pair for part in parts for pair in part.items()):
            counts[label] = counts.get(label, 0) + (rows if isinstance(rows, int) else 0)
        if counts:
            held[str(mapping(client).get("client"))] = dict(sorted(counts.items()))
    return held


def _title(run: Run) -> str:
    settings = run.settings
    dealt = str(settings.get("partitioner") or settings.get("scenario") or "")
    if dealt == "dirichlet":
        dealt += f" alpha {settings.get('dirichlet_alpha')}"
    return f"{dealt} seed {settings.get('seed')}"


def _panel(title: str, held: Mapping[str, Mapping[str, int]]) -> Panel:
    clients = list(held)[:MOST_CLIENTS]
    labels = sorted({label for counts in held.values() for label in counts})[:MOST_LABELS]
    table = np.array([[held[client].get(label, 0) for label in labels] for client in clients])
    totals = {client: sum(held[client].values()) for client in clients}

    def draw(axes: Any) -> None:
        axes.pcolormesh(table, cmap="Blues", vmin=0, vmax=max(1, table.max()), edgecolors="white")
        for (row, column), rows in np.ndenumerate(table):
            colour = "white" if rows > 0.6 * table.max() else "black"
            axes.text(column + 0.5, row + 0.5, str(rows), ha="center", va="center", color=colour, fontsize=7)
        axes.set_yticks(np.arange(len(clients)) + 0.5, [f"{client} (n = {totals[client]})" for client in clients])
        axes.set_xticks(np.arange(len(labels)) + 0.5, [short(label, 18) for label in labels], rotation=60, ha="right")
        axes.invert_yaxis()

    said = "; ".join(f"client {client}: {totals[client]} rows, {_most(held[client])}" for client in clients)
    left = len(held) - len(clients)
    said += f"; {left} more clients are not shown" if left else ""
    return Panel(title, f"Rows by client and label. {said}.", draw, height=120 + 19 * len(clients))


def _most(counts: Mapping[str, int]) -> str:
    label = max(counts, key=lambda label: counts[label])
    return f"{counts[label]} of them {label}"
