"""Membership inference: how well a row's loss tells whether a client trained on it, private or not.

A client trains the bundled model on some rows of the bundled clean data; the attacker sees the trained model, a row and
its loss, and says "trained on" where the loss is below a threshold (Yeom et al. 2018, arXiv:1709.01604). Advantage =
share of members that it says this of, less the share of rows that nobody holds; 0 is a guess, 1 is always right. The
best threshold for given rows would look better than 0 by chance alone. So it is chosen on a half of both kinds and
judged on the other, both ways: without any leak the expectation is exactly 0. A second attacker compares the loss
with that of the untouched model, as some rows are easier than others (in the manner of Watson et al. 2022,
arXiv:2111.08440).

One client and no averaging is the easiest case for the attacker. That the private arm passes proves no promise
(epsilon 3 allows an advantage of .91); that it did not would show a fault.

    python benchmarks/membership.py --json membership.json
    python benchmarks/membership.py --quick
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reporting import line, write_report

from fedbias_plugin.assets import TINY_MODEL
from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.sources import load_rows
from fedbias_plugin.federation.client import Client
from fedbias_plugin.metrics.statistics import t_interval
from fedbias_plugin.tasks.collator import PaddingCollator
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.dp import Private
from fedbias_plugin.training.models import load_model, load_tokenizer
from fedbias_plugin.training.parameters import prepared, read_state
from fedbias_plugin.training.per_example import row_losses
from fedbias_plugin.training.trainables import Lora

Losses = NDArray[np.float64]
ATTACKS = ("loss", "gain")
"""By the loss itself, or by how much it is below that of the untouched model."""


def best_threshold(members: Losses, others: Losses) -> float:
    """The loss up to which rows are called members with the largest advantage; any of them where several have it."""
    candidates = np.unique(np.concatenate([members, others]))
    shares = [np.searchsorted(np.sort(kind), candidates, side="right") / len(kind) for kind in (members, others)]
    return float(candidates[int(np.argmax(shares[0] - shares[1]))])


def advantage(members: Losses, others: Losses) -> float:
    """TPR - FPR on each half at the threshold that is best on the other half, the mean of both.

    >>> advantage(np.zeros(8), np.ones(8))
    1.0
    """
    halves = [(members[part::2], others[part::2]) for part in (0, 1)]
    found = []
    for chosen, judged in (halves, halves[::-1]):
        threshold = best_threshold(*chosen)
        found.append(float((judged[0] <= threshold).mean() - (judged[1] <= threshold).mean()))
    return sum(found) / 2


class World:
    """The bundled model and a draw of members and others by a seed."""

    def __init__(self, rows: int, others: int, seed: int) -> None:
        self.seed, self.tokenizer, self.task = seed, load_tokenizer(str(TINY_MODEL)), Sft()
        self.task.prepare(self.tokenizer)
        drawn = permuted(load_rows("mini-clean", "clean", "mini").rows, generator("membership", seed))
        features = self.task.encode(drawn[: rows + others], self.tokenizer, 128)
        self.members, self.others = features[:rows], features[rows:]
        self.collate = PaddingCollator(self.tokenizer.pad_token_id)

    def losses(self, model: Any) -> tuple[Losses, Losses]:
        """Of members and others: mean over a row's trained tokens, nats."""
        model.eval()
        both = []
        for rows in (self.members, self.others):
            found = []
            for start in range(0, len(rows), 100):
                batch = self.collate(rows[start : start + 100])
                labels = batch.pop("labels")
                with torch.no_grad():
                    found.append(row_losses(model(**batch).logits, labels))
            both.append(torch.cat(found).double().numpy())
        return both[0], both[1]

    def attacked(self, epsilon: float | None, steps: int, batch: int, learning_rate: float) -> dict[str, float]:
        """Train a client on the members; the attackers' advantages, and mean losses of both kinds."""
        model = prepared(load_model(str(TINY_MODEL), device="cpu"), Lora(8, 16, 0.0, "all-linear"), self.seed)
        before = self.losses(model)
        terms = [] if epsilon is None else [Private(dp_epsilon=epsilon)]
        settings = TrainingSettings(
            batch_size=batch,
            max_steps=steps,
            learning_rate=learning_rate,
            num_rounds=1,
            seed=self.seed,
            schedule_seed=self.seed,
        )
        client = Client(model, terms, task=self.task, settings=settings, pad_token_id=self.tokenizer.pad_token_id)
        client.fit(client.begin(0, 0, read_state(model)), self.members)
        after = self.losses(model)
        gains = [now - then for now, then in zip(after, before, strict=True)]
        return {
            "loss": advantage(*after),
            "gain": advantage(*gains),
            "loss_of_members": float(after[0].mean()),
            "loss_of_others": float(after[1].mean()),
            "loss_before": float(before[1].mean()),
        }


def summary(found: Sequence[dict[str, float]]) -> dict[str, object]:
    """Means over seeds; of the advantages with Student's 95% interval, from five seeds on."""
    report: dict[str, object] = {}
    for name in found[0]:
        values = [one[name] for one in found]
        report[name] = sum(values) / len(values)
        if name in ATTACKS:
            interval = t_interval(values, possible=(-1.0, 1.0))
            report[f"{name}_ci95"] = "not measured" if interval is None else [round(end, 4) for end in interval]
            report[f"{name}_by_seed"] = [round(value, 4) for value in values]
    return report


def bound(epsilon: float, delta: float) -> float:
    """The largest advantage of any attacker that (epsilon, delta) allows (Humphries et al. 2023, arXiv:2010.12112).

    >>> round(bound(3.0, 0.0), 3)
    0.905
    """
    return (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100, help="members")
    parser.add_argument("--others", type=int, default=1000, help="rows that nobody holds")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=4e-3, help="the one recommended for the bundled model")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(options.threads)
    settings = {name: getattr(options, name) for name in ("rows", "others", "steps", "batch", "learning_rate")}
    print(f"{options.threads} thread(s), load {os.getloadavg()[0]:.1f}; {line(settings)}")
    report: dict[str, object] = {**settings, "torch": torch.__version__}
    start, delta = time.perf_counter(), 1 / (2 * options.rows)
    for name, epsilon in (("plain", None), (f"epsilon {options.epsilon:g}", options.epsilon)):
        found = []
        for seed in range(1 if options.quick else options.seeds):
            world = World(options.rows, options.others, seed)
            found.append(world.attacked(epsilon, options.steps, options.batch, options.learning_rate))
            print(f"{name}, seed {seed}: {line(found[-1])}", flush=True)
        report[name] = summary(found)
        print(f"{name}, mean of {len(found)} seed(s): {line(summary(found))}", flush=True)
    report |= {"largest_allowed": bound(options.epsilon, delta), "seconds": time.perf_counter() - start}
    print(f"epsilon {options.epsilon:g} at delta {delta:g} allows an advantage of {bound(options.epsilon, delta):.3f}")
    write_report(report, options.json)


if __name__ == "__main__":
    main()
