"""A Flower run whose processes are killed at random moments: whether it ends with the bytes of a quiet run.

    python benchmarks/flower_kills.py [--kills 10] [--rounds 6] [--seed 0] [--json FILE]

Runs ``fedbias run`` on the bundled model once, then ``fedbias flower run`` on this machine with the same flags. A
SuperNode, worker, ClientApp, ServerApp or SuperLink is killed (SIGKILL) at a random moment of its turn; the command is
started again with ``--resume`` whenever it failed. Ends with code 1 where bytes differ though nobody was missing. For
Linux.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flower_processes import FlowerRun, kill, rounds_in
from reporting import write_report

from fedbias_plugin.hosts.flower.wire import LEDGER

VICTIMS = ("supernode", "worker", "clientapp", "serverapp", "superlink")
FLAGS = (
    "--model_name_or_path tiny --data_dir mini --client_samples 20 --max_steps 2 --batch_size 4 --heldout_samples 10 "
    "--bias_benchmarks crows_pairs --aggregation bama --fed_alg scaffold"
)
MOST_RESUMES = 50
UNLIKE = ("seconds", "peak_memory_bytes")


class Killed:
    """A run that is killed again and again, and goes on.

    Args:
        flags: of the run.
        folder: takes the run's folder and its log.
    """

    def __init__(self, flags: list[str], folder: Path) -> None:
        self.output, self.log = folder / "killed", folder / "log.txt"
        self.run = FlowerRun([*flags, "--output_dir", str(self.output)], self.log)
        self.resumed = 0

    def goes_on(self) -> bool:
        """Whether the command is running or, where it failed, could be resumed; False once it has finished."""
        code = self.run.process.poll()
        if code == 0:
            return False
        if code is not None:
            self.run.end()
            self.resumed += 1
            if self.resumed > MOST_RESUMES:
                raise SystemExit(f"the run fails without being killed: {self.log.read_text()[-2000:]}")
            self.run = FlowerRun(["--resume", str(self.output)], self.log)
        return True

    def kill_one(self, kind: str, after: int, delay: float, chance: random.Random) -> dict[str, Any] | None:
        """Kill a process of ``kind`` once ``after`` records are written and ``delay`` is over; None where it ended."""
        while self.goes_on() and rounds_in(self.output) < after:
            time.sleep(0.05)
        time.sleep(delay)
        found: list[Any] = []
        while self.goes_on() and not (found := self.run.living(kind)):
            time.sleep(0.02)
        if not found or not kill(chance.choice(found)):
            return None
        return {"victim": kind, "in_round": rounds_in(self.output), "resumed_before": self.resumed}


def difference(quiet: Path, killed: Path) -> tuple[str | None, list[str]]:
    """What differs between the results of two runs, if anything, and who was missing in the second."""
    records = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (quiet, killed)]
    missing = [
        f"round {record['round']}: client {client}: {found['refused']}"
        for record in records[1]
        for client, found in record["clients"].items()
        if found.get("refused")
    ]
    for found in records:
        for record in found:
            for name in UNLIKE:
                record.pop(name)
            for client in record["clients"].values():
                client["extra"] = {name: n for name, n in client["extra"].items() if name not in LEDGER}
    for one, other in itertools.zip_longest(*records, fillvalue={}):
        for name in one.keys() | other.keys():
            if one.get(name) != other.get(name):
                return (
                    f"metrics.jsonl, round {one.get('round')}, {name}: {one.get(name)} and {other.get(name)}",
                    missing,
                )
    for path in sorted((quiet / "adapter").iterdir()):
        if path.read_bytes() != (killed / "adapter" / path.name).read_bytes():
            return path.name, missing
    return None, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    victims = [VICTIMS[number % len(VICTIMS)] for number in range(options.kills)]
    chance.shuffle(victims)
    flags = [*FLAGS.split(), "--num_rounds", str(options.rounds)]
    with tempfile.TemporaryDirectory(prefix="flower-kills-") as name:
        folder = Path(name)
        quiet = [sys.executable, "-m", "fedbias_plugin", "run", *flags, "--output_dir", str(folder / "quiet")]
        subprocess.run(quiet, stdout=subprocess.DEVNULL, check=True)
        start, killed, kills = time.monotonic(), Killed(flags, folder), []
        try:
            for number, kind in enumerate(victims):
                after = 1 + number * options.rounds // options.kills
                kills.append(killed.kill_one(kind, after, chance.uniform(0, 4), chance))
                print(json.dumps(kills[-1]), flush=True)
            while killed.goes_on():
                time.sleep(0.1)
            differs, missing = difference(folder / "quiet", killed.output)
        finally:
            killed.run.end()
        seconds = time.monotonic() - start
    found = {
        "seed": options.seed,
        "kills": [entry for entry in kills if entry],
        "resumed": killed.resumed,
        "seconds": round(seconds),
        "missing": missing,
        "differs": differs,
    }
    write_report(found, options.json)
    for line in missing:
        print("missing:", line)
    result = f"{differs} differs" if differs else "the bytes of a quiet run"
    print(f"{len(found['kills'])} kills, {killed.resumed} resumes, {seconds:.0f} s: {result}")
    raise SystemExit(bool(differs) and not missing)


if __name__ == "__main__":
    main()
