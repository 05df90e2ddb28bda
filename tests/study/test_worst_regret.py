"""The score of a rule over cells: run_scripts/worst_regret.py, by hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "run_scripts/worst_regret.py"))
LOSS = "heldout_loss/report_loss"


def study(*arms):
    """Of (scenario, rule, CrowS by seed, loss by seed)."""
    made = []
    for scenario, rule, crows, loss in arms:
        facts = {"model": "tiny", "training": "fedavg", "scenario": scenario, "attack": "none", "clients": "3 of 3"}
        values = {"crows_pairs": crows, "stereoset": {}, LOSS: loss}
        made.append(SimpleNamespace(facts={**facts, "aggregation": rule}, values=values, runs=[]))
    return SimpleNamespace(arms=made, by_seed=lambda arm, measure: arm.values[measure])


def test_a_rule_s_worst_regret_is_the_largest_over_cells_of_its_distance_beyond_the_best_rule_s():
    found = SCRIPT["worst"](
        study(
            ("1B2C", "plain", {1: 66.0, 2: 70.0}, {1: 0.83, 2: 0.85}),
            ("1B2C", "krum", {1: 47.0, 2: 55.0, 3: 90.0}, {1: 0.86, 2: 0.88}),  # seed 3 is of krum alone
            ("3B", "plain", {1: 90.0}, {1: 1.0}),
            ("3B", "krum", {1: 100.0}, {1: 1.5}),
            ("2B1C", "plain", {1: 90.0}, {1: 1.0}),  # without krum: no cell
        )
    )
    # |68 - 50| - |51 - 50| and 40 - 40; 50 - 40 and nothing; losses .87 - .84 and 1.5 - 1
    assert (found["plain"]["bias"].value, found["plain"]["bias"].seeds) == (pytest.approx(17.0), 2)
    assert (found["krum"]["bias"].value, found["krum"]["bias"].cell[2]) == (pytest.approx(10.0), "3B")
    assert found["krum"]["loss"].value == pytest.approx(0.5)
    assert found["plain"]["loss"].value == pytest.approx(0.0)


def test_cells_of_clients_that_are_alike_may_be_left_out_and_what_is_missing_is_not_nothing():
    arms = study(
        ("3B", "plain", {1: 90.0}, {1: 1.0}), ("3B", "krum", {1: 100.0}, {1: 1.5}),
        ("1B2C", "plain", {1: 60.0}, {}), ("1B2C", "krum", {1: 52.0}, {1: 1.0}),
    )  # fmt: skip
    found = SCRIPT["worst"](arms, differ=True)
    assert found["plain"]["bias"].value == pytest.approx(8.0)
    assert "loss" not in found["plain"]


def test_the_mean_weight_of_each_client_tells_who_is_silenced():
    def run(*of_rounds):
        rounds = [
            SimpleNamespace(clients={client: SimpleNamespace(weight=one) for client, one in weights.items()})
            for weights in ({}, *of_rounds)
        ]
        return SimpleNamespace(rounds=rounds)

    facts = {"scenario": "3C", "client_field": "dialect"}
    arms = [
        SimpleNamespace(
            facts={**facts, "aggregation": "krum"}, runs=[run({0: 1.0, 2: 0.0}), run({0: 0.5, 1: 0.5, 2: 0.0})]
        ),
        SimpleNamespace(facts={**facts, "aggregation": "median"}, runs=[run({0: None, 2: None})]),
        SimpleNamespace(facts={"aggregation": "plain"}, runs=[run({0: 1.0})]),
    ]
    ((cell, rules),) = SCRIPT["weights"](SimpleNamespace(arms=arms)).items()
    assert cell[2] == "3C"
    assert rules == {"krum": {0: 0.75, 1: 0.5, 2: 0.0}}


def test_inverse_weights_are_plain_where_they_have_not_run_and_all_clients_hold_equally_many_rows():
    arms = study(
        ("1B2C", "plain", {1: 60.0}, {1: 1.0}), ("1B2C", "fedavgw", {1: 70.0}, {1: 1.0}),
        ("3B", "plain", {1: 90.0}, {1: 1.0}), ("2B1C", "plain", {1: 80.0}, {1: 1.0}),
    )  # fmt: skip
    for arm, rows in zip(arms.arms, [(5, 9), (5, 9), (9, 9), (5, 9)], strict=True):
        clients = {client: SimpleNamespace(rows=one) for client, one in enumerate(rows)}
        arm.runs = [SimpleNamespace(rounds=[SimpleNamespace(clients=clients)])]
    found = {
        cell[2]: {rule: one["crows_pairs"] for rule, one in rules.items()}
        for cell, rules in SCRIPT["cells"](arms).items()
    }
    assert found == {
        "1B2C": {"plain": {1: 60.0}, "fedavgw": {1: 70.0}},
        "3B": {"plain": {1: 90.0}, "fedavgw": {1: 90.0}},
        "2B1C": {"plain": {1: 80.0}},
    }
