"""Training, scoring and memory at real sizes: Llamas of 1B and 8B with a LoRA, in bfloat16, 8 and 4 bit.

Weights are random, saved once a size and loaded as a run loads them. Every row of the table is a process of its own,
so that one that fails (too little memory, no bitsandbytes) says so and the others go on; what the time is not enough
for is named. The peer of scoring is lm-evaluation-harness (``pip install lm-eval``), on the same model and texts.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --sizes 11M --quick
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import HuggingFace
from reporting import line, write_report
from scoring import SIZES, Ours, build_model, seconds, texts_of, timed, train_tokenizer

from fedbias_plugin.federation.client import Client
from fedbias_plugin.tasks.sft import Sft
from fedbias_plugin.training.client_memory import client_memory, measured_peak
from fedbias_plugin.training.client_trainer import TrainingSettings
from fedbias_plugin.training.models import load_model, load_tokenizer
from fedbias_plugin.training.parameters import prepared, read_state
from fedbias_plugin.training.trainables import Lora

WEIGHTS = {"bfloat16": {"dtype": "bfloat16"}, "8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}
PROBE = 0.25
"""Share of the items that a client is scored on (docs/metrics.md)."""
PASSES = {False: 4, True: 6}
"""Floating-point operations a weight and token of a step that trains adapters alone: forward and back through the
activations, two each; with checkpointing (True) forward once more."""


def peak_rate(device: str) -> float:
    """Floating-point operations a second of a large bfloat16 product, the best of five: the peak that shares are of."""
    side = 8192 if device == "cuda" else 1024
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: one @ other, device) for _ in range(6))


def saved(size: str, folder: Path, device: str) -> Path:
    """A model of random weights with a tokenizer, in a folder."""
    path = folder / size
    if not path.exists():
        model = build_model(size, torch.bfloat16, device).unload()
        model.save_pretrained(path)
        train_tokenizer(texts_of("crows_pairs", 1.0) + texts_of("stereoset", 1.0)).save_pretrained(path)
    return path


def bare_step(model: Any, features: list[dict[str, Any]], device: str) -> Callable[[], None]:
    """A loop's own step on a batch: forward, backward, clip, AdamW."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    tokens = torch.tensor([row["input_ids"] for row in features], device=device)

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training(model: Any, tokenizer: Any, settings: TrainingSettings, device: str) -> dict[str, Any]:
    """Tokens a second of a client as a run trains it, of a bare loop's step, and of that compiled; memory."""
    task = Sft()
    task.prepare(tokenizer)
    draws, words = random.Random(0), len(tokenizer)
    rows = settings.batch_size * settings.max_steps
    drawn = [[draws.randrange(2, words) for _ in range(settings.seq_length)] for _ in range(rows)]
    features = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in drawn]
    client = Client(model, [], task=task, settings=settings, pad_token_id=tokenizer.pad_token_id)
    theta = read_state(model)

    def fit() -> None:
        client.fit(client.begin(0, 0, theta), features)

    fit()  # warm
    batch = settings.batch_size * settings.seq_length
    rate = batch * settings.max_steps / timed(fit, device)
    found: dict[str, Any] = {"train_tokens_per_second": rate}
    model.train()
    for name, arm in (("bare", model), ("compiled", torch.compile(model))):
        try:
            step = bare_step(arm, features[: settings.batch_size], device)
            step(), step()
            found[f"{name}_tokens_per_second"] = batch * 5 / timed(lambda step=step: [step() for _ in range(5)], device)
        except Exception as error:  # what a compiler cannot do is a figure too
            found[f"{name}_tokens_per_second"] = f"failed: {type(error).__name__}"
    model.eval()
    model.zero_grad(set_to_none=True)
    found["memory_estimate_gib"] = client_memory(model, settings).total / 2**30
    found["memory_measured_gib"] = measured_peak(model, settings) / 2**30
    return found


def scoring(model: Any, tokenizer: Any, share: float, device: str) -> dict[str, Any]:
    """Seconds a client for the whole set and for the probe set, warm, and the ratio to the peer's on the same texts."""
    whole = texts_of("crows_pairs", share) + texts_of("stereoset", share)
    probe = random.Random(0).sample(whole, max(8, round(PROBE * len(whole))))
    ours, found = Ours(model, tokenizer), {}
    for name, texts in (("full", whole), ("probe", probe)):
        ours(texts)
        found[f"score_{name}_seconds"] = seconds(ours, texts, device)
    tokens = sum(map(len, tokenizer([text.context + text.text for text in whole])["input_ids"]))
    found["score_tokens_per_second"] = tokens / found["score_full_seconds"]
    if importlib.util.find_spec("lm_eval") is None:
        return found | {"peer_ratio": "lm-eval is not installed"}
    part = random.Random(0).sample(whole, min(len(whole), 400))
    ours(part)
    peer = HuggingFace(model, tokenizer)
    peer.client()
    times = {size: seconds(peer.at(size), part, device) for size in (32, 64, 128)}
    best = min(times, key=lambda size: times[size])
    ratios = [seconds(peer.at(best), part, device) / seconds(ours, part, device) for _ in range(3)]
    return found | {"peer_batch": best, "peer_ratio": sorted(ratios)[1], "peer_texts": len(part)}


def one_row(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one size in one kind of weights, in this process."""
    size, weights = options.row
    path = saved(size, Path(options.folder), options.device)
    tokenizer = load_tokenizer(str(path))
    parameters = _count(size)
    model = prepared(load_model(str(path), device=options.device, **WEIGHTS[weights]), Lora(8, 16, 0.05), 1)
    peak = peak_rate(options.device)
    settings = TrainingSettings(
        batch_size=options.batch,
        max_steps=options.steps,
        seq_length=options.seq_length,
        learning_rate=1e-4,
        num_rounds=1,
        bf16=options.device == "cuda",
        gradient_checkpointing=options.checkpointing,
    )
    scored = scoring(model, tokenizer, options.share, options.device)
    trained = training(model, tokenizer, settings, options.device)
    share = PASSES[options.checkpointing] * parameters * trained["train_tokens_per_second"] / peak
    about = {"size": size, "weights": weights, "parameters": parameters, "peak_tflops": peak / 1e12}
    return {**about, **scored, **trained, "train_share_of_peak": share}


def _count(size: str) -> int:
    """Weights of the model that multiply: all but the input embeddings."""
    hidden, layers, inner, heads = SIZES[size]
    groups = 8 / heads if size == "8B" else 1
    return round(layers * (2 * hidden**2 * (1 + groups) + 3 * hidden * inner) + 32_000 * hidden)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few items, short rows and two steps")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1B", "8B"])
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--minutes", type=float, default=14.0, help="no row is begun after so many")
    parser.add_argument("--share", type=float, default=1.0, help="share of the benchmarks' items")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq_length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true", help="train with gradient checkpointing")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--row", nargs=2, metavar=("SIZE", "WEIGHTS"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.share, options.batch, options.seq_length, options.steps = 0.01, 2, 32, 2
    if options.row:
        print(json.dumps(one_row(options)))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu.py needs a CUDA device here; --device cpu shows that it runs, on a small --sizes.")
    rows, start = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for weights in options.weights:
                if time.perf_counter() - start > 60 * options.minutes:
                    rows.append({"size": size, "weights": weights, "left_out": "out of time"})
                else:
                    rows.append(_in_process([*sys.argv[1:], "--folder", folder, "--row", size, weights], size, weights))
                print(line(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    about = {"device": device, "torch": torch.__version__, "batch": options.batch, "seq_length": options.seq_length}
    write_report({**about, "minutes": (time.perf_counter() - start) / 60, "rows": rows}, options.json)


def _in_process(flags: list[str], size: str, weights: str) -> dict[str, Any]:
    """A row, or why there is none."""
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
    if done.returncode:
        said = [text for text in done.stderr.splitlines() if text.strip()] or ["no message"]
        return {"size": size, "weights": weights, "failed": said[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
