"""How BAMA shares the weight among the clients of a round, poisoned clients hatched."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped, short
from fedbias_plugin.report.study import Arm, Study, StudyRun
from fedbias_plugin.tracking.records import RoundRecord

TITLE = "Client weights by round under BAMA"
POISONED_COLOUR = "#D55E00"
CLEAN_COLOURS = ("#56B4E9", "#C6E3F5")
MOST_CLIENTS = 8
LARGEST_ROUNDS_WITH_IDS = 8
SMALLEST_SHARE_WITH_ID = 0.12


def client_weights(study: Study) -> Figure | LeftOut:
    """Stacked weights of one run of every arm under BAMA, with the mean weight on poisoned clients over its seeds."""
    arms = [arm for arm in study.arms if arm.aggregation == "bama" and _weighed(arm.runs[0])]
    if not arms:
        return LeftOut(TITLE, "no run weighs its clients by BAMA.")
    shown, more = capped([_panel(arm) for arm in arms], "arms under BAMA")
    caption = (
        "A bar a round: the share of every client in the new global model, in the run of the first seed. Numbers name "
        "the clients; hatched ones hold biased rows. Black marks, with several seeds: the weight on all poisoned "
        f"clients, mean over seeds. Under equal weights all parts of a bar would be equally high.{more}"
    )
    return Figure("client_weights", TITLE, caption, shown)


def _weighed(run: StudyRun) -> list[RoundRecord]:
    """The rounds whose clients have weights, at most 24 of them, evenly chosen."""
    rounds = [record for record in run.rounds if any(client.weight is not None for client in record.clients.values())]
    step = -(-len(rounds) // 24) or 1
    return rounds[::-1][::step][::-1]


def _panel(arm: Arm) -> Panel:
    rounds = _weighed(arm.runs[0])
    is_mean = len(arm.runs) > 1
    means = [(record.round, mean) for record in rounds if (mean := _mean_on_poisoned(arm, record.round)) is not None]

    def draw(axes: Any) -> None:
        for position, record in enumerate(rounds):
            _stack(axes, position, record, with_ids=len(rounds) <= LARGEST_ROUNDS_WITH_IDS)
        places = {record.round: position for position, record in enumerate(rounds)}
        if means and is_mean:
            axes.plot(
                [places[number] for number, _ in means], [mean for _, mean in means], linestyle="none", marker="D",
                markersize=5, markerfacecolor="black", markeredgecolor="white", label="poisoned, mean over seeds",
            )  # fmt: skip
        axes.bar(0, 0, color=POISONED_COLOUR, hatch="///", edgecolor="white", label="poisoned")
        axes.bar(0, 0, color=CLEAN_COLOURS[0], label="clean")
        step = -(-len(rounds) // 12)
        axes.set_xticks(range(0, len(rounds), step), [str(record.round) for record in rounds[::step]])
        axes.set(ylim=(0, 1), xlabel="round", ylabel="client weight")

    return Panel(arm.label, f"{TITLE}. {_spoken(means, is_mean)}", draw)


def _spoken(means: Sequence[tuple[int, float]], is_mean: bool) -> str:
    if not means:
        return "It is not known which clients are poisoned."
    said = ", ".join(f"{mean:.2f} in round {number}" for number, mean in (means[0], means[-1]))
    return f"Weight on poisoned clients{', mean over seeds' if is_mean else ''}: {said}."


def _mean_on_poisoned(arm: Arm, number: int) -> float | None:
    found = [record.weight_on_poisoned for run in arm.runs for record in run.rounds if record.round == number]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known else None


def _stack(axes: Any, position: int, record: RoundRecord, *, with_ids: bool) -> None:
    """The clients of a round, poisoned ones below."""
    bottom, clean = 0.0, 0
    for name, weight, is_poisoned in _parts(record):
        colour = POISONED_COLOUR if is_poisoned else CLEAN_COLOURS[clean % 2]
        clean += not is_poisoned
        axes.bar(
            position, weight, 0.78, bottom=bottom, color=colour, edgecolor="white", linewidth=0.8,
            hatch="///" if is_poisoned else None,
        )  # fmt: skip
        if with_ids and name and weight >= SMALLEST_SHARE_WITH_ID:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2} if is_poisoned else None
            axes.text(position, bottom + weight / 2, short(name, 4), ha="center", va="center", bbox=box)
        bottom += weight


def _parts(record: RoundRecord) -> list[tuple[str, float, bool]]:
    """Name, weight and whether poisoned; more clients than can be told apart are one part of each kind."""
    parts = [
        (str(client), row.weight, bool(row.poisoned_share))
        for client, row in record.clients.items()
        if row.weight is not None
    ]
    parts.sort(key=lambda part: (not part[2], int(part[0])))
    if len(parts) <= MOST_CLIENTS:
        return parts
    return [("", sum(part[1] for part in parts if part[2] is kind), kind) for kind in (True, False)]
