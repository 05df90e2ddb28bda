"""Bias scoring: this package against lm-evaluation-harness (``pip install lm-eval``), on the same model and texts.

Both score CrowS-Pairs and the StereoSet development set with a Llama of random weights and a LoRA, in one process and
in turn; the peer at the best of several batch sizes. The log-likelihoods of CrowS-Pairs must agree. The data are found
as ``fedbias`` finds them (``FEDBIAS_DATA``); the tokenizer is trained on the spot.

    python benchmarks/scoring.py --size 110M --share 0.2 --json scoring.json
    python benchmarks/scoring.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reporting import line, write_report

from fedbias_plugin.federation.inputs import metric_source
from fedbias_plugin.registry import load
from fedbias_plugin.scoring import fast_linears
from fedbias_plugin.scoring.items import ScoreRequest
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.scorer import SentenceScorer

VOCABULARY = 32_000
SIZES = {
    "11M": (256, 4, 512, 4),
    "15M": (288, 6, 768, 6),
    "110M": (768, 12, 2048, 12),
    "1B": (2048, 22, 5632, 32),
    "8B": (4096, 32, 14336, 32),
}
"""Hidden size, layers, inner size, heads."""
PEER_BATCHES = (8, 16, 32)
Texts = list[ScoreRequest]


class Recorder:
    """Takes a benchmark's requests down instead of scoring them."""

    def score(self, requests: Sequence[ScoreRequest], describe: object = None) -> list[Any]:
        self.requests = list(requests)
        raise StopIteration


def load_benchmark(name: str) -> Any:
    """A metric by its name, with the items of this machine's data set."""
    metric = load("metric", name)()
    metric.prepare(metric_source(None))
    return metric


def texts_of(name: str, share: float) -> Texts:
    """The texts of a share of the items of a benchmark, drawn by a fixed seed."""
    benchmark = load_benchmark(name)
    count = max(2, round(share * len(benchmark.ids)))
    recorder = Recorder()
    with contextlib.suppress(StopIteration):
        benchmark.measure(recorder, indices=sorted(random.Random(0).sample(range(len(benchmark.ids)), count)))
    return recorder.requests


def train_tokenizer(texts: Texts) -> Any:
    """Byte-pair encoding of up to 32,000 tokens, trained on the texts themselves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([text.context + text.text for text in texts], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def build_model(size: str, dtype: torch.dtype, device: str) -> Any:
    """A Llama of random weights with a LoRA on queries and values, as OpenFedLLM puts it."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, inner, heads = SIZES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8 if size == "8B" else heads,
        max_position_embeddings=1024,
        tie_word_embeddings=size in ("11M", "15M", "110M"),
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, lora).eval()


class Peer:
    """lm-evaluation-harness's ``HFLM.loglikelihood``."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        from lm_eval.models.huggingface import HFLM

        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)

    def __call__(self, texts: Texts) -> list[float]:
        from lm_eval.api.instance import Instance

        instances = [Instance("loglikelihood", {}, (t.context, t.text), i) for i, t in enumerate(texts)]
        return [score for score, _ in self.lm.loglikelihood(instances, disable_tqdm=True)]


class Ours:
    """:class:`SentenceScorer` with the plans of the run, as a session scores every client."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.plans = model, tokenizer, PlanCache()

    def __call__(self, texts: Texts) -> list[float]:
        scorer = SentenceScorer(self.model, self.tokenizer, plans=self.plans)
        return [float(scores.log_probs.sum()) for scores in scorer.score(texts)]


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds, the GPU's work included."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def seconds(function: Callable[[Texts], list[float]], texts: Texts, device: str) -> float:
    return timed(lambda: function(texts), device)


def stereotyped(scores: Sequence[float]) -> float:
    """``pct_stereotype`` of alternating sent_more and sent_less."""
    return 100 * statistics.fmean(more > less for more, less in zip(scores[::2], scores[1::2], strict=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    crows, stereoset = (texts_of(name, options.share) for name in ("crows_pairs", "stereoset"))
    texts, dtype = crows + stereoset, getattr(torch, options.dtype)
    tokenizer = train_tokenizer(texts_of("crows_pairs", 1.0) + texts_of("stereoset", 1.0))
    model = build_model(options.size, dtype, options.device)
    ours = Ours(model, tokenizer)
    cold = seconds(ours, texts, options.device)
    batches = PEER_BATCHES if options.batches is None else options.batches
    part = random.Random(0).sample(texts, min(len(texts), max(200, len(texts) // 10)))
    Peer(model, tokenizer, 8)(part[:16])
    best = min(batches, key=lambda size: seconds(Peer(model, tokenizer, size), part, options.device))
    peer = Peer(model, tokenizer, best)
    times = [[seconds(call, texts, options.device) for call in (peer, ours)] for _ in range(options.repeats)]
    ratios = [first / second for first, second in times]
    theirs, own = peer(crows), ours(crows)
    report = {
        "size": options.size,
        "share": options.share,
        "data": str(load_benchmark("crows_pairs").path),
        "dtype": options.dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "torch": torch.__version__,
        "texts": len(texts),
        "peer_batch": best,
        "peer_seconds": statistics.median(first for first, _ in times),
        "ours_seconds": statistics.median(second for _, second in times),
        "ours_first_seconds": cold,
        "onednn": options.device == "cpu" and fast_linears._onednn_pays(fast_linears._linear_layers(model)),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "pct_stereotype_peer": stereotyped(theirs),
        "pct_stereotype_ours": stereotyped(own),
        "largest_difference": float(np.abs(np.subtract(theirs, own)).max()),
    }
    if options.dtype == "float32":
        assert report["largest_difference"] <= 1e-3, report
        assert report["pct_stereotype_peer"] == report["pct_stereotype_ours"], report
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15M parameters, 3%% of the items, 3 repeats")
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--share", type=float, default=1.0, help="share of the items")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", help="the peer's batch sizes, of which it takes the best")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without_onednn", action="store_true", help="ordinary kernels, whatever is faster")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    if options.quick:
        options.size, options.share, options.repeats = "15M", 0.03, 3
    if options.without_onednn:
        fast_linears.GAIN = -1.0
    if importlib.util.find_spec("lm_eval") is None:
        raise SystemExit("scoring.py compares with lm-evaluation-harness: pip install lm-eval")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    report = measure(options)
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
