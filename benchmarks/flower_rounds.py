"""How much longer a round takes over Flower than in one process, and what two SuperNodes win; same bytes or no figure.

``python benchmarks/flower_rounds.py [--clients 3] [--supernodes N] [--rounds 4] [flags of fedbias run]``: the built-in
host, then ``fedbias flower run`` on this machine. The first round is left out: its SuperNodes load the model. Each
process has one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from flower_processes import same_weights
from reporting import write_report


def seconds_of(command: list[str], flags: list[str], output: Path) -> list[float]:
    """Training seconds of every round but the first."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "fedbias_plugin", *command, *flags, "--output_dir", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        sys.exit(ran.stdout[-2000:] + ran.stderr[-2000:])
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["seconds"]["train"] for line in lines[2:]]


def main() -> None:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--supernodes", type=int)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the seconds of every round there")
    known, rest = parser.parse_known_args()
    flags = ["--data_dir", "mini", "--num_rounds", str(known.rounds), "--bias_benchmarks", "none"]
    flags += ["--scenario", "custom", "--biased_shares", ",".join(["1", *["0"] * (known.clients - 1)]), *rest]
    nodes = ["--supernodes", str(known.supernodes or known.clients)]
    with tempfile.TemporaryDirectory() as folder:
        built_in, flower = Path(folder) / "built_in", Path(folder) / "flower"
        here = seconds_of(["run"], flags, built_in)
        there = seconds_of(["flower", "run", *nodes], flags, flower)
        if not same_weights(built_in, flower):
            sys.exit("The weights differ.")
    mine, theirs = statistics.median(here), statistics.median(there)
    print(f"built-in {mine:.1f} s a round {[round(x, 1) for x in here]}, Flower {theirs:.1f} s", end=" ")
    print(f"{[round(x, 1) for x in there]}: {theirs - mine:+.1f} s, {mine / theirs:.2f} times as fast; same bytes")
    write_report({"built_in": here, "flower": there}, known.json)


if __name__ == "__main__":
    main()
