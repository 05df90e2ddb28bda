"""The worst regret of every rule over the cells of a sweep: ``run_scripts/worst_regret.py FOLDER [FOLDER...]``.

A cell is what its runs have alike but for rule and seed (scenario, attack, clients); steps on the result belong to the
rule. In a cell the regret of a rule is, of each benchmark, ``|mean score - 50|`` over seeds minus that of the best
rule, and of the loss on the report half of the held-out rows its mean minus the best rule's. Only seeds that all of the
cell's rules have count, and only cells in which all rules have run; ``fedavgw`` is ``plain`` in cells where it has not
run and all clients hold equally many rows. With ``--differ`` without the cells in which
clients are alike (mixed rows, 3B of three).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fedbias_plugin.study.frame import Arm, Study, load_study

CELL = ("model", "training", "scenario", "attack", "clients", "client_field")
LOSS = "heldout_loss/report_loss"
BIASES = ("crows_pairs", "stereoset")
ALIKE = {("mix-1B2C", "3 of 3"), ("3B", "3 of 3")}


class Regret(NamedTuple):
    """Of one rule in one cell by one measure; ``seeds`` is how many runs of each rule it is of."""

    value: float
    cell: tuple[Any, ...]
    measure: str
    seeds: int

    @property
    def where(self) -> str:
        """``stereoset, 2B1C none 3 of 3, 2 seeds``."""
        cell = " ".join(str(part) for part in self.cell[2:] if part is not None)
        return f"{self.measure}, {cell}, {self.seeds} seeds"


def rule_of(arm: Arm) -> str:
    """``predictive``, or ``predictive, 2 steps``."""
    steps = arm.facts.get("pair_steps")
    return f"{arm.facts['aggregation']}, {steps} steps" if steps else str(arm.facts["aggregation"])


def cells(study: Study) -> dict[tuple[Any, ...], dict[str, dict[str, dict[Any, float]]]]:
    """Cell -> rule -> measure -> seed -> final value."""
    found: dict[tuple[Any, ...], dict[str, dict[str, dict[Any, float]]]] = defaultdict(dict)
    for arm in study.arms:
        cell = tuple(arm.facts.get(name) for name in CELL)
        found[cell][rule_of(arm)] = {name: study.by_seed(arm, name) for name in (*BIASES, LOSS)}
        if rule_of(arm) == "plain" and len(rows_of_clients(arm)) == 1:
            found[cell].setdefault("fedavgw", found[cell]["plain"])
    return found


def rows_of_clients(arm: Arm) -> set[int]:
    """How many rows a client of the arm holds: one number where all hold equally many."""
    return {row.rows for run in arm.runs for record in run.rounds for row in record.clients.values()}


def regrets(
    cell: tuple[Any, ...], rules: Mapping[str, Mapping[str, Mapping[Any, float]]]
) -> Iterator[tuple[str, Regret]]:
    """(rule, regret) of every measure that all rules of the cell have for some seed."""
    for measure in (*BIASES, LOSS):
        seeds = set.intersection(*(set(values[measure]) for values in rules.values()))
        if not seeds:
            continue
        means = {rule: sum(values[measure][seed] for seed in seeds) / len(seeds) for rule, values in rules.items()}
        costs = means if measure == LOSS else {rule: abs(mean - 50.0) for rule, mean in means.items()}
        best = min(costs.values())
        yield from ((rule, Regret(cost - best, cell, measure, len(seeds))) for rule, cost in costs.items())


def worst(study: Study, *, differ: bool = False) -> dict[str, dict[str, Regret]]:
    """Rule -> ``bias`` and ``loss`` -> its largest regret."""
    by_cell = cells(study)
    everyone = {rule for rules in by_cell.values() for rule in rules}
    found: dict[str, dict[str, Regret]] = defaultdict(dict)
    for cell, rules in by_cell.items():
        if set(rules) != everyone or (differ and (cell[2], cell[4]) in ALIKE):
            continue
        for rule, regret in regrets(cell, rules):
            kind = "loss" if regret.measure == LOSS else "bias"
            if kind not in found[rule] or regret.value > found[rule][kind].value:
                found[rule][kind] = regret
    return found


def weights(study: Study) -> dict[tuple[Any, ...], dict[str, dict[int, float]]]:
    """Cell with a ``client_field`` -> rule -> client -> its mean weight over rounds and seeds."""
    found: dict[tuple[Any, ...], dict[str, dict[int, float]]] = defaultdict(dict)
    for arm in study.arms:
        if arm.facts.get("client_field") is None:
            continue
        given = defaultdict(list)
        for record in (record for run in arm.runs for record in run.rounds):
            for client, row in record.clients.items():
                if row.weight is not None:
                    given[client].append(row.weight)
        means = {client: sum(values) / len(values) for client, values in sorted(given.items())}
        if means:
            found[tuple(arm.facts.get(name) for name in CELL)][rule_of(arm)] = means
    return found


def main() -> None:
    """Print a line a rule, the best by bias first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--differ", action="store_true", help="leave out cells in which all clients are alike")
    given = parser.parse_args()
    study = load_study(given.folders)
    found = worst(study, differ=given.differ)
    print("| rule | worst regret, points | where | worst regret, nats | where |\n|---|---|---|---|---|")
    for rule, kinds in sorted(found.items(), key=lambda pair: pair[1]["bias"].value if "bias" in pair[1] else 0.0):
        shown = []
        for kind, decimals in (("bias", 1), ("loss", 3)):
            one = kinds.get(kind)
            shown += ["not measured", ""] if one is None else [f"{one.value:.{decimals}f}", one.where]
        print(f"| {rule} | {' | '.join(shown)} |")
    for cell, rules in weights(study).items():
        print(f"\nmean weight by client, {' '.join(map(str, cell[2:]))}:")
        for rule, means in rules.items():
            print(f"  {rule}: {', '.join(f'client {client} {weight:.3f}' for client, weight in means.items())}")


if __name__ == "__main__":
    main()
