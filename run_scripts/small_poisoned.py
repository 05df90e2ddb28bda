#!/usr/bin/env python
"""What inverse weights make of a small poisoned client: the runs and the numbers of docs/attacks.md.

    run_scripts/small_poisoned.py runs/small_poisoned            # run what is missing, print the numbers
    run_scripts/small_poisoned.py runs/small_poisoned --tables   # numbers only

The bundled model and small world, five clients: client 0 holds 5 rows, all biased, the others 100 clean ones each. All
train 10 steps a round, whatever they hold (OpenFedLLM's default), for 3 rounds; {plain, fedavgw} x 5 seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from fedbias_plugin.data.scenarios import Scenario
from fedbias_plugin.registry import EXTENSIONS

ROWS, SMALL = 100, 5
SEEDS = (2023, 2024, 2025, 2026, 2027)
RULES = ("plain", "fedavgw")
MEASURES = ("crows_pairs/delta", "stereoset/delta", "heldout_loss")


class SmallPoisoned(Scenario):
    """``custom``, of whose client 0 only the first :data:`SMALL` rows are kept."""

    def deal(self, arguments, num_clients, seed):  # type: ignore[no-untyped-def]
        dealt = super().deal(arguments, num_clients, seed)
        first, *others = dealt.clients
        return dataclasses.replace(dealt, clients=[dataclasses.replace(first, rows=first.rows[:SMALL]), *others])


# Before the flags are made of what is registered; its flags are those of the scenarios.
sys.modules.setdefault("small_poisoned", sys.modules[__name__])
EXTENSIONS["split"]["custom"] = "small_poisoned:SmallPoisoned"


def run_one(root: Path, rule: str, seed: int) -> Path:
    """The folder of the run, which is made where it is missing."""
    from fedbias_plugin import run

    folder = root / f"{rule}-{seed}"
    if not (folder / "summary.json").is_file():
        run(
            config="quickstart", scenario="custom", biased_shares="1,0,0,0,0", client_samples=ROWS, num_clients=5,
            num_rounds=3, local_epochs=None, max_steps=10, seed=seed, aggregation=rule, bias_eval_every=3,
            output_dir=str(folder),
        )  # fmt: skip
    return folder


def print_tables(folders: dict[str, list[Path]]) -> None:
    """Mean and 95% interval over seeds of each rule and of their difference (paired by seed, Student's t)."""
    from fedbias_plugin.metrics.statistics import paired_t, t_interval
    from fedbias_plugin.tracking.jsonl import read_rounds
    from fedbias_plugin.tracking.numbers import measures

    everything = (-1e9, 1e9)
    found = {rule: [read_rounds(one / "metrics.jsonl") for one in those] for rule, those in folders.items()}
    weights = {rule: sorted({round(one[-1].clients[0].weight or 0, 3) for one in runs}) for rule, runs in found.items()}
    effective = {rule: runs[0][-1].effective_clients for rule, runs in found.items()}
    print("weight of client 0:", weights, "effective clients:", effective)
    for name in MEASURES:
        values = {rule: [measures(one[-1])[name] for one in runs] for rule, runs in found.items()}
        for rule, numbers in values.items():
            low, high = t_interval(numbers, possible=everything) or (float("nan"), float("nan"))
            mean = sum(numbers) / len(numbers)
            print(f"{name}, {rule}: {mean:.2f} [{low:.2f}, {high:.2f}], n = {len(numbers)}; {numbers}")
        print(f"{name}, difference: {paired_t(values['plain'], values['fedavgw'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", action="store_true", help="run nothing")
    parser.add_argument("--seeds", help="such as 2023,2024; all when absent")
    options = parser.parse_args()
    seeds = [int(one) for one in options.seeds.split(",")] if options.seeds else SEEDS
    if not options.tables:
        for seed in seeds:
            for rule in RULES:
                run_one(options.folder, rule, seed)
    print_tables({rule: [options.folder / f"{rule}-{seed}" for seed in seeds] for rule in RULES})


if __name__ == "__main__":
    main()
