"""What measuring and weighing cost a round of BAMA, per second of client training, and whether memory stays flat.

Runs the built-in host with the settings of the quickstart (or ``--config``), then reads the seconds and the peak memory
that the run wrote for every round.

    python benchmarks/round_overhead.py --rounds 50 --json round_overhead.json
    python benchmarks/round_overhead.py --quick
    python benchmarks/round_overhead.py --rounds 3 -- --model_name_or_path FOLDER --data_dir DATA --seq_length 512
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from reporting import line, write_report

from fedbias_plugin.cli.main import main as fedbias

CONFIG = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SETTLED = 5
"""Rounds after which every buffer has been made."""


def train(config: Path, rounds: int, flags: list[str], folder: Path) -> list[dict[str, Any]]:
    """The records of one run, round 0 left out."""
    output = folder / "run"
    run = ["run", "--config", str(config), "--num_rounds", str(rounds), "--aggregation", "bama"]
    code = fedbias([*run, "--output_dir", str(output), "--track", "jsonl", *flags])
    assert code == 0, f"fedbias run ended with {code}"
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["round"] > 0]


def shares(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds of the seconds of each part per second of training."""
    parts = [record["seconds"] for record in records]
    report: dict[str, Any] = {"train_seconds": statistics.median(part["train"] for part in parts)}
    for name in ("assess", "aggregate", "evaluate"):
        report[name] = statistics.median(part[name] / part["train"] for part in parts)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("flags", nargs="*", help="further flags of fedbias run, after --")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        records = train(options.config, rounds, options.flags, Path(folder))
    report = {"rounds": rounds, "threads": options.threads, "torch": torch.__version__, **shares(records)}
    peaks = [record["peak_memory_bytes"] for record in records]
    report["peak_memory_gib"] = peaks[-1] / 2**30
    if rounds > SETTLED:
        report["memory_growth"] = peaks[-1] / peaks[SETTLED - 1] - 1
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
