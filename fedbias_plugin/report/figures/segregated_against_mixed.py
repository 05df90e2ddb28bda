"""The paper's Figure 1: the same biased rows in clients of their own, or mixed into every client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedbias_plugin.report.arm_choice import SCENARIO, agreeing
from fedbias_plugin.report.figures.arm_groups import arm_facts
from fedbias_plugin.report.figures.drawing import Figure, LeftOut, capped
from fedbias_plugin.report.figures.grouped_bars import BAR_NOTE, BarGroup, bar_panels
from fedbias_plugin.report.study import Arm, Study

TITLE = "Segregated against mixed biased data (the paper's Figure 1)"
MIXED = "mix-"
KINDS = ("segregated", "mixed")


def segregated_against_mixed(study: Study) -> Figure | LeftOut:
    """Delta of 1B2C beside mix-1B2C and of 2B1C beside mix-2B1C, where all other settings agree."""
    groups = _pairs(study)
    if not groups:
        return LeftOut(TITLE, "no two arms differ only in whether the biased rows are mixed into every client.")
    shown, more = capped(bar_panels("", groups, KINDS), "panels")
    caption = f"1B2C: one client of three holds all biased rows; mix-1B2C: all clients hold a third of them. {BAR_NOTE}"
    return Figure("segregated_against_mixed", TITLE, caption + more, shown)


def _pairs(study: Study) -> list[BarGroup]:
    groups = agreeing([arm for arm in study.arms if arm.scenario], SCENARIO)
    found = [
        (arm, scenarios[MIXED + scenario])
        for scenarios in ({arm.scenario: arm for arm in group} for group in groups)
        for scenario, arm in scenarios.items()
        if MIXED + scenario in scenarios
    ]
    return [BarGroup(_name(segregated, found), (segregated, mixed)) for segregated, mixed in found]


def _name(arm: Arm, pairs: list[tuple[Arm, Arm]]) -> tuple[str, ...]:
    """The scenario, below what else differs among the pairs."""
    facts: list[Mapping[str, Any]] = [arm_facts(one) for one, _ in pairs]
    own = arm_facts(arm)
    names = ("model_name_or_path", "fed_alg", "aggregation", "participation")
    parts = [str(own.get(name)) for name in names if len({one.get(name) for one in facts}) > 1]
    return *parts, arm.scenario
