#!/usr/bin/env python
"""The first study on the small world: every run of docs/first-results.md, then its tables.

    run_scripts/first_results.py runs/first_results            # run what is missing, print the tables (Markdown)
    run_scripts/first_results.py runs/first_results --tables   # tables only

Scenario 1B2C with {fedavg, fedadam, fedprox} x {host, bama normalized, bama paper} and 3B, 3C as bounds with the host's
own weighting, three seeds each, 5 rounds x 2 local epochs on the bundled model and data.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ALGORITHMS = ("fedavg", "fedadam", "fedprox")
AGGREGATIONS = {
    "host": ["--aggregation", "host"],
    "bama-normalized": ["--aggregation", "bama", "--bama_weighting", "normalized"],
    "bama-paper": ["--aggregation", "bama", "--bama_weighting", "paper"],
}
SEEDS = (2023, 2024, 2025)
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "quickstart.yaml"
# The server learning rate at which FedAdam's first step is about as long as FedAvg's.
FEDADAM = ["--fedopt_eta", "3e-3"]


def grid() -> list[tuple[str, str, str, int]]:
    """(scenario, algorithm, aggregation, seed) of every run."""
    cells = [("1B2C", algorithm, weighting) for algorithm in ALGORITHMS for weighting in AGGREGATIONS]
    cells += [(scenario, algorithm, "host") for scenario in ("3B", "3C") for algorithm in ALGORITHMS]
    return [(*cell, seed) for cell in cells for seed in SEEDS]


def folder(root: Path, cell: tuple[str, str, str, int]) -> Path:
    """Where the run of ``cell`` is."""
    return root / "-".join(str(part) for part in cell)


def run_cell(root: Path, cell: tuple[str, str, str, int]) -> int:
    """Run one cell unless it is done; one thread, so that two fit on two cores."""
    scenario, algorithm, weighting, seed = cell
    output = folder(root, cell)
    if (output / "adapter").exists():
        return 0
    command = [sys.executable, "-m", "fedbias_plugin", "run", "--config", str(CONFIG), "--scenario", scenario]
    command += ["--fed_alg", algorithm, "--seed", str(seed), "--output_dir", str(output), *AGGREGATIONS[weighting]]
    command += ["--bias_eval_every", "5"]
    command += FEDADAM if algorithm == "fedadam" else []
    with open(root / f"{output.name}.log", "w") as log:
        return subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def load(root: Path, cell: tuple[str, str, str, int]) -> list[dict[str, Any]]:
    """The rounds of a run."""
    return [json.loads(line) for line in (folder(root, cell) / "metrics.jsonl").read_text().splitlines()]


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and range over seeds."""
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def with_intervals(last: list[dict[str, Any]], benchmark: str, key: str) -> str:
    """Mean Delta over seeds, then every seed's score with its 95% interval."""
    blocks = [rounds["global"][benchmark] for rounds in last]
    mean = statistics.mean(abs(block[key] - 50) for block in blocks)
    seeds = "; ".join(f"{b[key]:.1f} [{b['ci95'][0]:.0f}, {b['ci95'][1]:.0f}]" for b in blocks)
    return f"**{mean:.1f}** ({seeds})"


def row(root: Path, scenario: str, algorithm: str, weighting: str) -> str:
    """One line of the table: report-half scores of the last round over the seeds."""
    runs = [load(root, (scenario, algorithm, weighting, seed)) for seed in SEEDS]
    last = [rounds[-1] for rounds in runs]
    late = [r["weight_on_poisoned"] for rounds in runs for r in rounds[2:]]
    cells = [
        f"{scenario} {algorithm} {weighting}",
        with_intervals(last, "crows_pairs", "score"),
        with_intervals(last, "stereoset", "ss"),
        spread([r["global"]["stereoset"]["lms"] for r in last]),
        spread(late, 3) if scenario == "1B2C" else "–",
        spread([r["aggregation_mass"] for r in last], 2),
        spread([r["global"]["heldout_loss"]["loss"] for r in last], 3),
    ]
    return "| " + " | ".join(cells) + " |"


def tables(root: Path) -> str:
    """The Markdown table of docs/first-results.md."""
    head = "| run | Delta CrowS (score per seed) | Delta SS (SS per seed) | LMS "
    head += "| w on poisoned, rounds 2-5 | mass | held-out loss |"
    cells = list(dict.fromkeys(cell[:3] for cell in grid()))
    return "\n".join([head, "|---" * 7 + "|", *(row(root, *cell) for cell in cells)])


def main() -> int:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--tables", action="store_true", help="print the tables of finished runs only")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    if not arguments.tables:
        arguments.root.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            codes = list(pool.map(lambda cell: run_cell(arguments.root, cell), grid()))
        failed = [folder(arguments.root, cell).name for cell, code in zip(grid(), codes, strict=True) if code]
        if failed:
            print("failed:", ", ".join(failed), file=sys.stderr)
            return 1
    print(tables(arguments.root))
    return 0


if __name__ == "__main__":
    sys.exit(main())
