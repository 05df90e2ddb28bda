"""A multiple-choice task of lm-evaluation-harness (``pip install lm-eval``): its own model against this package's.

Both answer a task whose choices share a long prompt, made up on the spot, with the harness's own code around the
forward pass; the peer at the best of several batch sizes. Every measure must agree.

    python benchmarks/harness.py --size 110M --documents 200 --json harness.json
    python benchmarks/harness.py --quick
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from reporting import clocked, line, write_report
from scoring import SIZES, build_model, train_tokenizer

from fedbias_plugin.metrics.base import Source
from fedbias_plugin.metrics.harness_files import quiet
from fedbias_plugin.metrics.harness_tasks import Tasks, aggregate, ask
from fedbias_plugin.registry import load
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.scorer import SentenceScorer

PEER_BATCHES = (4, 8, 16, 32)
WORDS = (
    "the",
    "a",
    "of",
    "and",
    "old",
    "new",
    "small",
    "large",
    "red",
    "blue",
    "house",
    "river",
    "road",
    "town",
    "bridge",
)
TASK = {
    "task": "made_up",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{passage}}\n\nQ: {{question}}\nA:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}


def write_task(folder: Path, documents: int, words: int) -> Path:
    """The task's YAML file, with rows beside it: a passage of ``words`` words, a question, four choices of 1 to 6."""
    draws = random.Random(0)

    def text(count: int) -> str:
        return " ".join(draws.choices(WORDS, k=count))

    rows = [
        {
            "passage": text(words),
            "question": text(8),
            "choices": [f"{text(draws.randint(1, 6))} {number}" for number in range(4)],
            "label": draws.randrange(4),
        }
        for _ in range(documents)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")}
    path = folder / "made_up.yaml"
    path.write_text(yaml.safe_dump({**TASK, "dataset_kwargs": data}))
    return path


def numbers(tasks: Tasks, model: Any) -> dict[str, Any]:
    """Every measure of a model on all documents."""
    with torch.inference_mode():
        raws = ask(tasks, tasks.items, model)
    return dict(aggregate(tasks, [item.task for item in tasks.items], raws).numbers)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM

    from fedbias_plugin.scoring.harness_model import HarnessModel, own_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        metric = load("metric", f"harness:{write_task(Path(folder), options.documents, options.words)}")()
        metric.prepare(Source(lambda kind: Path(kind)))
    tasks = metric.found
    texts = ["".join(instance.args) for item in tasks.items for instance in item.instances]
    tokenizer = train_tokenizer([ScoreRequest(text) for text in texts])
    model = build_model(options.size, getattr(torch, options.dtype), options.device)
    scorer, encoded = SentenceScorer(model, tokenizer, plans=PlanCache()), {}

    def ours() -> dict[str, Any]:
        with quiet():
            return numbers(tasks, HarnessModel.of(scorer, own_tokenizer(tokenizer), encoded))

    def peer(batch: int) -> Callable[[], dict[str, Any]]:
        lm = HFLM(pretrained=model, tokenizer=own_tokenizer(tokenizer), batch_size=batch)
        return lambda: numbers(tasks, lm)

    first = clocked(ours, options.device).wall
    peers = {batch: peer(batch) for batch in options.batches}
    best = min(peers, key=lambda batch: clocked(peers[batch], options.device).fair(options.device))
    times = [[clocked(call, options.device) for call in (peers[best], ours)] for _ in range(options.repeats)]
    theirs, own = peers[best](), ours()
    if options.dtype == "float32":
        assert theirs == own, (theirs, own)
    walls = [first_one[0] / second[0] for first_one, second in times]
    return {
        "size": options.size,
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "documents": options.documents,
        "requests": len(texts),
        "tokens": sum(len(tokenizer.encode(text)) for text in texts) / len(texts),
        "peer_batch": best,
        "peer_seconds": statistics.median(one[0] for one, _ in times),
        "ours_seconds": statistics.median(one[0] for _, one in times),
        "ours_first_seconds": first,
        "ratio": statistics.median(walls),
        "ratio_low": min(walls),
        "ratio_high": max(walls),
        "ratio_of_cpu_seconds": statistics.median(one[1] / other[1] for one, other in times),
        "acc_peer": theirs["acc"][0],
        "acc_ours": own["acc"][0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15M parameters, 40 documents, 3 repeats")
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--words", type=int, default=60, help="of the prompt that the choices of a document share")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=PEER_BATCHES, help="the peer's; it takes the best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if options.quick:
        options.size, options.documents, options.repeats = "15M", 40, 3
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("harness.py compares with lm-evaluation-harness: pip install lm-eval")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    report = measure(options)
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
