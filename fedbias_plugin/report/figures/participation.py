"""How bias changes when only some of many clients take part in a round."""

from __future__ import annotations

from typing import Any

from fedbias_plugin.report.figures.arm_groups import arm_facts
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped
from fedbias_plugin.report.figures.grouped_bars import BAR_NOTE, BarGroup, bar_panels
from fedbias_plugin.report.study import Arm, Study

TITLE = "Bias by participation"
CLIENTS = ("num_clients", "sample_clients", "participation")
AGGREGATION = ("aggregation", "weighting", "bama_lambda", "bama_alpha", "bama_weighting")


def participation(study: Study) -> Figure | LeftOut:
    """Delta by how many of how many clients take part; a panel an algorithm and benchmark, a bar a rule."""
    panels: list[Panel] = []
    for arms in _series(study):
        panels += _panels(arms)
    if not panels:
        return LeftOut(TITLE, "no two arms differ in how many clients there are or take part.")
    shown, more = capped(panels, "panels")
    caption = (
        "3/10: three of ten clients take part in a round, other ones every round. Clients beyond those "
        f"that the scenario names are clean. {BAR_NOTE}"
    )
    return Figure("participation", TITLE, caption + more, shown)


def _series(study: Study) -> list[list[Arm]]:
    """Arms that agree in all but participation and the weights, where at least two participations are there."""
    by_key: dict[Any, list[Arm]] = {}
    for arm in study.arms:
        if arm.num_clients and not arm.is_centralised:
            facts = arm_facts(arm)
            key = tuple(sorted(item for item in facts.items() if item[0] not in (*CLIENTS, *AGGREGATION)))
            by_key.setdefault(key, []).append(arm)
    return [arms for arms in by_key.values() if len({_place(arm) for arm in arms}) > 1]


def _place(arm: Arm) -> tuple[int, int]:
    return arm.num_clients or 0, arm.sample_clients or 0


def _rule(arm: Arm) -> str:
    return f"{arm.aggregation} ({arm.weighting})" if arm.weighting else arm.aggregation


def _panels(arms: list[Arm]) -> list[Panel]:
    """A bar for every rule at every participation; of several arms the first."""
    kinds = sorted({_rule(arm) for arm in arms}, key=lambda kind: not kind.startswith("host"))
    places = sorted({_place(arm) for arm in arms})
    found: dict[tuple[tuple[int, int], str], Arm] = {}
    for arm in arms:
        found.setdefault((_place(arm), _rule(arm)), arm)
    groups = [
        BarGroup((f"{sample}/{clients}",), tuple(found.get(((clients, sample), kind)) for kind in kinds))
        for clients, sample in places
    ]
    return bar_panels(f"{arms[0].fed_alg} {arms[0].scenario}".strip(), groups, kinds)
