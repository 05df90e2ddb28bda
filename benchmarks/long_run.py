"""Many rounds of one run: whether time a round, memory and open files stay flat.

    python benchmarks/long_run.py [--rounds 200] [--json FILE] [-- FLAGS OF fedbias run]

Runs ``fedbias run`` on the bundled model in a process of its own, looks at that process after every round, and compares
the medians of the first quarter of the rounds (after ten to settle) with those of the last quarter. Seconds on the CPU
say more than seconds on the clock where other processes are busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from reporting import line, write_report

SETTLING = 10
FLAGS = "--config configs/quickstart.yaml --local_epochs 1 --aggregation bama --fed_alg scaffold"


def watch(command: list[str], metrics: Path) -> dict[int, tuple[int, int, float]]:
    """Rounds recorded so far -> resident bytes, open files, seconds on the CPU, as soon as a round is recorded."""
    process, held = subprocess.Popen(command, stdout=subprocess.DEVNULL), {}
    looked_at = psutil.Process(process.pid)
    while process.poll() is None:
        rounds = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if rounds and rounds not in held:
            times = looked_at.cpu_times()
            held[rounds] = looked_at.memory_info().rss, looked_at.num_fds(), times.user + times.system
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"the run ended with code {process.returncode}")
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        more = [flag for flag in flags if flag != "--"]
        command = [sys.executable, "-m", "fedbias_plugin", "run", *FLAGS.split(), *more]
        held = watch(
            [*command, "--num_rounds", str(options.rounds), "--output_dir", str(output)], output / "metrics.jsonl"
        )
        records = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    columns = {"seconds_a_round": {record["round"]: sum(record["seconds"].values()) for record in records}}
    columns["cpu_seconds_a_round"] = {n - 1: held[n][2] - held[n - 1][2] for n in held if n - 1 in held}
    columns["resident_mib"] = {number - 1: memory / 2**20 for number, (memory, _, _) in held.items()}
    columns["open_files"] = {number - 1: files for number, (_, files, _) in held.items()}
    quarter = (options.rounds - SETTLING) // 4
    early, late = (range(start, start + quarter) for start in (SETTLING, options.rounds - quarter + 1))
    report: dict[str, object] = {"rounds": options.rounds, "seconds": sum(columns["seconds_a_round"].values())}
    for name, values in columns.items():
        first, last = (statistics.median(values[n] for n in part if n in values) for part in (early, late))
        report |= {f"{name}_early": first, f"{name}_late": last, f"{name}_ratio": last / first}
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
