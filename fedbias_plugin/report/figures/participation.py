"""How bias changes when only some of many clients take part in a round."""

from __future__ import annotations

from fedbias_plugin.report.arm_choice import PARTICIPATION, WEIGHTING, agreeing, pick
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, Panel, capped
from fedbias_plugin.report.figures.grouped_bars import BAR_NOTE, BarGroup, bar_panels
from fedbias_plugin.report.study import Arm, Study

TITLE = "Bias by participation"


def participation(study: Study) -> Figure | LeftOut:
    """Delta by how many of how many clients take part; a panel an algorithm and benchmark, a bar a rule."""
    panels: list[Panel] = []
    notes: list[str] = []
    for arms in _series(study):
        panels += _panels(arms, notes)
    if not panels:
        return LeftOut(TITLE, "no two arms differ in how many clients there are or take part.")
    shown, more = capped(panels, "panels")
    caption = (
        "3/10: three of ten clients take part in a round, other ones every round. Clients beyond those "
        f"that the scenario names are clean. {BAR_NOTE}"
    )
    return Figure("participation", TITLE, " ".join([caption + more, *notes]), shown)


def _series(study: Study) -> list[list[Arm]]:
    """Arms that agree in all but participation and the weights, where at least two participations are there."""
    arms = [arm for arm in study.arms if arm.num_clients and not arm.is_centralised]
    groups = agreeing(arms, PARTICIPATION | WEIGHTING)
    return [group for group in groups if len({_place(arm) for arm in group}) > 1]


def _place(arm: Arm) -> tuple[int, int]:
    return arm.num_clients or 0, arm.sample_clients or 0


def _rule(arm: Arm) -> str:
    return f"{arm.aggregation} ({arm.weighting})" if arm.weighting else arm.aggregation


def _panels(arms: list[Arm], notes: list[str]) -> list[Panel]:
    """A bar for every rule at every participation, of BAMA the one with default alpha and lambda."""
    kinds = sorted({_rule(arm) for arm in arms}, key=lambda kind: not kind.startswith("plain"))
    groups = []
    for clients, sample in sorted({_place(arm) for arm in arms}):
        here = [arm for arm in arms if _place(arm) == (clients, sample)]
        bars = (pick([arm for arm in here if _rule(arm) == kind], notes, PARTICIPATION) for kind in kinds)
        groups.append(BarGroup((f"{sample}/{clients}",), tuple(bars)))
    return bar_panels(f"{arms[0].fed_alg} {arms[0].scenario}".strip(), groups, kinds)
