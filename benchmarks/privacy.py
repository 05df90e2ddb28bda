"""Private training against plain training of the same client: DP-Adam and AdamW on LoRA adapters, seconds and memory.

Both train the bundled model for the same number of steps with batches of the same (average) size, in turn in one
process; the memory of each is that of a process of its own, above what the process held before it trained.

    python benchmarks/privacy.py --json privacy.json
    python benchmarks/privacy.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from reporting import line, write_report

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.federation.client import Client
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.dp import Private
from fedbias_plugin.training.models import load_model, load_tokenizer
from fedbias_plugin.training.parameters import prepared, read_state
from fedbias_plugin.training.trainables import Lora
from fedbias_plugin.updates.base import Update

ROWS, BATCH = 300, 16
ARMS = ("plain", "private")


class Arm:
    """A client that trains one way or the other; every round begins where the first did."""

    def __init__(self, name: str, steps: int, batch: int) -> None:
        tokenizer = load_tokenizer(str(TINY_MODEL))
        task = Sft()
        task.prepare(tokenizer)
        self.features = task.encode(load_rows("mini-clean", "clean", "mini").rows[:ROWS], tokenizer, 128)
        model = prepared(load_model(str(TINY_MODEL), device="cpu"), Lora(8, 16, 0.05, "all-linear"), 1)
        terms = [Private(dp_noise_multiplier=1.0, dp_accountant="rdp")] if name == "private" else []
        settings = TrainingSettings(batch_size=batch, max_steps=steps, learning_rate=1e-3, num_rounds=1)
        self.client = Client(model, terms, task=task, settings=settings, pad_token_id=tokenizer.pad_token_id)
        self.theta = read_state(model)

    def train(self) -> tuple[float, Update]:
        """Seconds and the update of a round."""
        start = time.perf_counter()
        update = self.client.fit(self.client.begin(0, 0, self.theta), self.features)
        return time.perf_counter() - start, update


def resident_mib(field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (the peak) of this process, on Linux."""
    found = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(found.split()[1]) / 2**10


def memory(name: str, steps: int, batch: int) -> dict[str, float]:
    """Peak and what training added to it, MiB, in a process of its own."""
    command = [sys.executable, __file__, "--arm", name, "--steps", str(steps), "--batch", str(batch)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one_arm(name: str, steps: int, batch: int) -> dict[str, float]:
    """What :func:`memory` asks a process for."""
    arm = Arm(name, steps, batch)
    if name == "private":
        import opacus.grad_sample  # noqa: F401  # a library is no memory of training
    loaded = resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    arm.train()
    peak = resident_mib("VmHWM")
    return {"peak_mib": peak, "training_mib": peak - loaded}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 steps and 3 repeats")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = options.steps or (10 if options.quick else 30)
    if options.arm:
        print(json.dumps(one_arm(options.arm, steps, options.batch)))
        return
    load = os.getloadavg()[0]
    arms = [Arm(name, steps, options.batch) for name in ARMS]
    times = [[arm.train()[0] for arm in arms] for _ in range(1 + (3 if options.quick else 7))][1:]
    ratios = [private / plain for plain, private in times]
    held = {name: memory(name, steps, options.batch) for name in ARMS}
    report: dict[str, object] = {
        "steps": steps,
        "batch": options.batch,
        "plain_seconds": statistics.median(plain for plain, _ in times),
        "private_seconds": statistics.median(private for _, private in times),
        "ratio_seconds": statistics.median(ratios),
        "ratio_seconds_low": min(ratios),
        "ratio_seconds_high": max(ratios),
        **{f"{name}_{what}": mib for name, found in held.items() for what, mib in found.items()},
        "ratio_peak": held["private"]["peak_mib"] / held["plain"]["peak_mib"],
        "ratio_training_memory": held["private"]["training_mib"] / held["plain"]["training_mib"],
        "threads": options.threads,
        "load_before": load,
        "load_after": os.getloadavg()[0],
        "torch": torch.__version__,
    }
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
