"""What a round over Flower costs with a large state: seconds of transport, and the SuperLink's memory.

``python benchmarks/flower_states.py [--layers 17] [--clients 3] [--rounds 5] [--json FILE]``: every weight of a random
GPT-2 (17 layers: 121 million float32, 484 MB) goes to each client and comes back. The built-in host, then
``fedbias flower run`` on this machine, one short step a client. The first round is left out: its SuperNodes load the
model. Same bytes, and an answer from every client in every round, or no figure. For Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
from flower_processes import FlowerRun, same_weights
from reporting import line, write_report

FLAGS = (
    "--data_dir mini --use_peft false --max_steps 1 --batch_size 1 --seq_length 128 --client_samples 4 "
    "--heldout_samples 4 --bias_benchmarks none --gradient_checkpointing false --learning_rate 1e-5"
)


def make_model(folder: Path, layers: int) -> int:
    """A random GPT-2 of width 768 with the bundled tokenizer; returns the bytes of its weights."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from fedbias_plugin.assets import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_layer=layers, n_positions=256))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def records(output: Path) -> list[dict]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


def watched(run: FlowerRun) -> float:
    """Wait for the end of a run; the most memory that its SuperLink held, in GiB.

    Raises:
        SystemExit: the run failed.
    """
    most = 0.0
    while run.process.poll() is None:
        for process in run.living("superlink"):
            with suppress(psutil.Error):
                most = max(most, process.memory_info().rss / 2**30)
        time.sleep(0.5)
    if run.process.returncode:
        raise SystemExit(run.log.read_text()[-3000:])
    return most


def main() -> None:
    """Run both and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flower-states-") as name:
        folder = Path(name)
        size = make_model(folder / "model", options.layers)
        flags = [*FLAGS.split(), "--model_name_or_path", str(folder / "model"), "--num_rounds", str(options.rounds)]
        flags += ["--scenario", "custom", "--biased_shares", ",".join(["1", *["0"] * (options.clients - 1)])]
        plain = [sys.executable, "-m", "fedbias_plugin", "run", *flags, "--output_dir", str(folder / "here")]
        subprocess.run(plain, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, check=True)
        run = FlowerRun([*flags, "--output_dir", str(folder / "there")], folder / "log.txt")
        try:
            memory = watched(run)
        finally:
            run.end()
        seconds = {
            side: [record["seconds"]["train"] for record in records(folder / side)[2:]] for side in ("here", "there")
        }
        answered = [len(record["clients"]) for record in records(folder / "there")[1:]]
        if not same_weights(folder / "here", folder / "there") or answered != [options.clients] * options.rounds:
            sys.exit(f"The weights differ, or an answer is missing: {answered}.")
    found = {
        "state, MB": size / 1e6,
        "built-in, s a round": statistics.median(seconds["here"]),
        "Flower, s a round": statistics.median(seconds["there"]),
        "longest, s": max(seconds["there"]),
        "SuperLink, GiB": memory,
        "rounds": options.rounds,
        "clients": options.clients,
    }
    print(line(found))
    write_report(found, options.json)


if __name__ == "__main__":
    main()
