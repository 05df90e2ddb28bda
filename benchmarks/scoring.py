"""Bias scoring: this package against lm-evaluation-harness (``pip install lm-eval``), on the same model and texts.

Both score CrowS-Pairs and the StereoSet development set with a Llama of random weights and a LoRA, in one process and
in turn; the peer (``--peer``, see :mod:`peers`) at the best of several batch sizes. Every repeat is another client, its
LoRA changed: ``set_up`` is what the peer then does until it has scored a first text, and its ratio is given with and
without it; ours needs nothing but the changed weights. The log-likelihoods of CrowS-Pairs must agree. ``limit`` is how
far the ratio can go (:mod:`limits`). The data are found as ``fedbias`` finds them (``FEDBIAS_DATA``); the tokenizer is
trained on the spot.

    python benchmarks/scoring.py --size 110M --share 0.2 --json scoring.json
    python benchmarks/scoring.py --peer openvino --share 0.03 --threads 1
    python benchmarks/scoring.py --quick
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from limits import Machine, Work, counting, measured_machine, scoring_limit
from peers import PEERS, Peer
from reporting import Seconds, clocked, line, write_report

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


class Ours:
    """:class:`SentenceScorer` with the plans of the run, as a session scores every client."""

    def __init__(self, model: Any, tokenizer: Any, scoring_dtype: str = "float32") -> None:
        self.model, self.tokenizer, self.plans, self.scoring_dtype = model, tokenizer, PlanCache(), scoring_dtype

    @property
    def dtype(self) -> torch.dtype:
        """What most of the work is done in: a model that is not of float32 keeps its type."""
        own: torch.dtype = self.model.get_input_embeddings().weight.dtype
        return torch.bfloat16 if self.scoring_dtype == "bfloat16" else own

    def __call__(self, texts: Texts) -> list[float]:
        scorer = SentenceScorer(self.model, self.tokenizer, plans=self.plans, dtype=self.scoring_dtype)
        return [float(scores.log_probs.sum()) for scores in scorer.score(texts)]


def timed(work: Callable[[], Any], device: str) -> float:
    """Seconds on the wall, the GPU's work included."""
    return clocked(work, device).wall


def seconds(function: Callable[[Texts], list[float]], texts: Texts, device: str) -> float:
    return timed(lambda: function(texts), device)


def next_client(model: Any, number: int) -> None:
    """Change the adapter a little, as the next client's training does; the same for every peer."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                draws = torch.Generator(weight.device).manual_seed(number)
                noise = torch.randn(weight.shape, generator=draws, device=weight.device)
                weight.add_(noise.to(weight.dtype), alpha=1e-3)


def stereotyped(scores: Sequence[float]) -> float:
    """``pct_stereotype`` of alternating sent_more and sent_less."""
    return 100 * statistics.fmean(more > less for more, less in zip(scores[::2], scores[1::2], strict=True))


Row = tuple[Seconds, Seconds, Seconds, Machine]
"""Of one client: the peer's set-up, its scoring, ours, and the machine at that moment."""


def one_client(number: int, peer: Peer, ours: Ours, batch: int | str, texts: Texts, device: str) -> Row:
    next_client(ours.model, number)

    def set_up() -> None:
        peer.client()
        peer.at(batch)(texts[:1])

    times = [clocked(work, device) for work in (set_up, lambda: peer(texts), lambda: ours(texts))]
    return times[0], times[1], times[2], measured_machine(ours.model, ours.dtype, device)


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {name: statistics.median(values), f"{name}_low": min(values), f"{name}_high": max(values)}


def figures(rows: Sequence[Row], peer: Work, ours: Work, device: str) -> dict[str, float]:
    """Times and their ratios, of the wall and of the CPU; set-up and limits on the clock that is fair."""
    report: dict[str, float] = {}
    for clock in ("wall", "cpu") if device == "cpu" else ("wall",):
        before = "" if clock == "wall" else "cpu_"
        times = [[getattr(one, clock) for one in row[:3]] for row in rows]
        for name, column in zip(("set_up", "peer", "ours"), zip(*times, strict=True), strict=True):
            report[f"{name}_{before}seconds"] = statistics.median(column)
        report |= spread(f"{before}ratio", [theirs / own for _, theirs, own in times])
        report |= spread(f"{before}ratio_with_set_up", [(first + theirs) / own for first, theirs, own in times])
    limits = [scoring_limit(row[3], peer, ours, row[1].fair(device), row[2].fair(device)) for row in rows]
    report |= {name: statistics.median(one[name] for one in limits) for name in limits[0]}
    report |= spread("limit", [one["limit"] for one in limits])
    return report | spread("kernel_gflops", [row[3].rate / 1e9 for row in rows])


def best_batch(peer: Peer, batches: Sequence[int | str], part: Texts, device: str) -> int | str:
    """The batch size at which the peer is fastest on some of the texts."""
    peer.client()
    peer.at(batches[0])(part[:16])
    if len(batches) == 1:
        return batches[0]
    return min(batches, key=lambda size: clocked(lambda: peer.at(size)(part), device).fair(device))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    crows, stereoset = (texts_of(name, options.share) for name in ("crows_pairs", "stereoset"))
    texts, dtype = crows + stereoset, getattr(torch, options.dtype)
    tokenizer = train_tokenizer(texts_of("crows_pairs", 1.0) + texts_of("stereoset", 1.0))
    model = build_model(options.size, dtype, options.device)
    ours = Ours(model, tokenizer, options.scoring_dtype)
    with counting(model) as our_work:
        cold = seconds(ours, texts, options.device)
    precision = options.peer_precision or options.dtype
    peer = PEERS[options.peer](model, tokenizer, threads=options.threads, precision=precision)
    part = random.Random(0).sample(texts, min(len(texts), max(200, len(texts) // 10)))
    best = best_batch(peer, options.batches or peer.batches, part, options.device)
    rows, peer_work = [], Work()
    for number in range(options.repeats):
        rows.append(one_client(number, peer, ours, best, texts, options.device))
        peer_work = peer.work
    theirs, own = peer(crows), ours(crows)
    peer.close()
    report = {
        "size": options.size,
        "share": options.share,
        "data": str(load_benchmark("crows_pairs").path),
        "dtype": options.dtype,
        "scoring_dtype": options.scoring_dtype,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads,
        "torch": torch.__version__,
        "texts": len(texts),
        "clients": options.repeats,
        "peer": options.peer,
        "peer_precision": precision,
        "peer_batch": best,
        **figures(rows, peer_work, our_work, options.device),
        "ours_first_seconds": cold,
        "onednn": options.device == "cpu" and fast_linears._onednn_pays(fast_linears._linear_layers(model)),
        "pct_stereotype_peer": stereotyped(theirs),
        "pct_stereotype_ours": stereotyped(own),
        "largest_difference": float(np.abs(np.subtract(theirs, own)).max()),
    }
    if (options.dtype, precision, options.scoring_dtype) == ("float32",) * 3:
        assert report["largest_difference"] <= 1e-3, report
        assert report["pct_stereotype_peer"] == report["pct_stereotype_ours"], report
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="15M parameters, 3%% of the items, 3 repeats")
    parser.add_argument("--size", choices=SIZES, default="15M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--scoring_dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="that of `fedbias run`: what ours scores a float32 model in",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--peer", choices=PEERS, default="hf", help="lm-evaluation-harness's model to compare with")
    parser.add_argument(
        "--peer_precision",
        choices=("float32", "bfloat16", "default"),
        help="that OpenVINO or vLLM computes in (default: --dtype; 'default': what the engine chooses)",
    )
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
    if obstacle := PEERS[options.peer].obstacle(options.device):
        raise SystemExit(f"scoring.py --peer {options.peer}: {obstacle}")
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    report = measure(options)
    print(line(report))
    write_report(report, options.json)


if __name__ == "__main__":
    main()
