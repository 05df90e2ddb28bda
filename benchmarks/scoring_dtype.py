"""What scoring in bfloat16 does to a float32 model's scores, beside their sampling intervals, and how fast it is.

Every model scores CrowS-Pairs and StereoSet both ways (``--scoring_dtype``), in one process and in turn: the bundled
model the mini data, with and without a LoRA; a Llama of random weights with or without one, or a model of yours, the
data sets that ``fedbias`` finds (``FEDBIAS_DATA``). ``--run`` trains a small run with BAMA both ways and compares its
weights. Times are CPU seconds, so that work beside it counts little.

    python benchmarks/scoring_dtype.py --models tiny tiny+lora 15M --share 0.2 --run --json dtype.json
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from reporting import line, write_report
from scoring import SIZES, build_model, texts_of, train_tokenizer

from fedbias_plugin.federation.inputs import metric_source
from fedbias_plugin.metrics.scoring_choice import compared
from fedbias_plugin.preflight import model_path
from fedbias_plugin.registry import load
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.scorer import SentenceScorer
from fedbias_plugin.training.models import load_model, load_tokenizer

DTYPES = ("float32", "bfloat16")
RUN = {
    "model_name_or_path": "tiny",
    "data_dir": "mini",
    "aggregation": "bama",
    "use_peft": True,
    "num_rounds": 2,
    "local_epochs": 1,
    "client_samples": 60,
    "heldout_samples": 20,
    "seq_length": 128,
    "learning_rate": 4e-3,
}
"""Flags of the small run."""


def build(name: str, device: str) -> tuple[Any, Any, str | None]:
    """Model, tokenizer, and where its data lie (None: where ``fedbias`` finds them)."""
    path, _, adapter = name.partition("+")
    if path in SIZES:
        texts = texts_of("crows_pairs", 1.0) + texts_of("stereoset", 1.0)
        made = build_model(path, torch.float32, device)
        return made.unload() if adapter == "bare" else made, train_tokenizer(texts), None
    known = model_path(path)
    model, data = load_model(known).to(device).eval(), "mini" if path == "tiny" else None
    if adapter and adapter != "lora":
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter).to(device).eval()
    elif adapter:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    return model, load_tokenizer(known), data


def half_width(interval: Any) -> float | None:
    """Of a 95% interval, percentage points."""
    return None if interval is None else (interval[1] - interval[0]) / 2


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one model."""
    model, tokenizer, data = build(name, options.device)
    report: dict[str, Any] = {"model": name}
    plans, spent = PlanCache(), {dtype: [0.0] * options.repeats for dtype in DTYPES}
    for benchmark in ("crows_pairs", "stereoset"):
        metric = load("metric", benchmark)()
        metric.prepare(metric_source(data))
        count = len(metric.ids)
        share = 1.0 if data == "mini" else options.share
        items = sorted(random.Random(0).sample(range(count), max(2, round(share * count))))
        found: dict[str, Any] = {}
        metric.measure(SentenceScorer(model, tokenizer, plans=plans), items)
        for repeat in range(options.repeats):
            for dtype in DTYPES:
                start = time.process_time()
                found[dtype] = metric.measure(SentenceScorer(model, tokenizer, plans=plans, dtype=dtype), items)
                spent[dtype][repeat] += time.process_time() - start
        exact, rounded = (metric.block(metric.result(found[dtype], seed=0)) for dtype in DTYPES)
        both = compared(metric, found["float32"], found["bfloat16"], 0)
        report |= {f"{metric.short}_items": both["items"], f"{metric.short}_flips_percent": both["sign_flips_percent"]}
        for part, interval in ((metric.main, "ci95"), ("lms", "lms_ci95")):
            if part in exact:
                label = metric.short if part == metric.main else "LMS"
                report[label] = exact[part]
                report[f"{label}_difference"] = rounded[part] - exact[part]
                report[f"{label}_half_interval"] = half_width(exact.get(interval))
    ratios = [first / second for first, second in zip(*spent.values(), strict=True)]
    report |= {f"{dtype}_cpu_seconds": statistics.median(times) for dtype, times in spent.items()}
    return report | {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}


def run_both() -> dict[str, Any]:
    """The largest differences of BAMA's weights and of clients' scores in a small run, both ways of scoring."""
    from fedbias_plugin.cli.main import main as fedbias

    rounds = {}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            flags = RUN | {"scoring_dtype": dtype, "output_dir": f"{folder}/{dtype}"}
            given = [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
            assert fedbias(["run", *given]) == 0
            lines = Path(folder, dtype, "metrics.jsonl").read_text().splitlines()
            rounds[dtype] = [json.loads(one)["clients"] for one in lines[1:]]
    report: dict[str, Any] = {"run_rounds": RUN["num_rounds"]}
    for number, (one, other) in enumerate(zip(*rounds.values(), strict=True), start=1):
        for key in ("weight", "bias_score"):
            moved = [abs(one[client][key] - other[client][key]) for client in one]
            report[f"round_{number}_{key}_difference"] = max(moved)
        report[f"round_{number}_weights"] = [round(client["weight"], 4) for client in one.values()]
    blocks = [client["crows_pairs"] for client in rounds["float32"][0].values()]
    return report | {"client_crows_half_interval": statistics.fmean(half_width(block["ci95"]) or 0 for block in blocks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = ", ".join(SIZES)
    known = f"tiny or a folder (+lora: with a random one; +ADAPTER: a folder's), {sizes} (with a LoRA; +bare: without)"
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny+lora", "15M"], help=known)
    parser.add_argument("--share", type=float, default=0.2, help="share of the items, of other models than tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", action="store_true", help="also a small run with BAMA, both ways")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    reports = []
    for name in options.models:
        reports.append(compare(name, options))
        print(line(reports[-1]), flush=True)
    run = run_both() if options.run else {}
    print(line(run))
    settings = {"torch": torch.__version__, "threads": options.threads, "share": options.share}
    write_report({**settings, "models": reports, "run": run}, options.json)


if __name__ == "__main__":
    main()
