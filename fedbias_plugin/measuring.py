"""How biased is this model? In memory, without training: what ``fedbias evaluate`` and ``measure`` share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.arguments import BENCHMARKS, BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.assessor import count_texts
from fedbias_plugin.evaluation.plans import PlanCache, plans_folder
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.evaluation.results import CrowsPairsResult, ResultMetadata, StereoSetResult
from fedbias_plugin.evaluation.scorer import SentenceScorer
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.inputs import announce_mini_data, load_benchmark
from fedbias_plugin.keywords import named_as_keywords
from fedbias_plugin.options import check_range, options, split_list
from fedbias_plugin.preflight import LARGEST_SEED
from fedbias_plugin.progress import build_progress
from fedbias_plugin.report.evaluation import evaluation_summary, evaluation_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.evaluation.assessor import Benchmark


@dataclass(frozen=True)
class BiasResult:
    """What was measured, printed in a few lines.

    Attributes:
        results: benchmark -> :class:`CrowsPairsResult` or :class:`StereoSetResult`; ``result["crows_pairs"].score`` is
            a short way to it.
        metadata: benchmark -> data file and hash, reduction, prefix token, model, versions, seed.
    """

    results: Mapping[str, CrowsPairsResult | StereoSetResult]
    metadata: Mapping[str, ResultMetadata]

    def __getitem__(self, benchmark: str) -> Any:
        """The result of one benchmark, ``crows_pairs`` or ``stereoset``."""
        return self.results[benchmark]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as ``fedbias evaluate --output`` writes them: benchmark -> result, and ``metadata``."""
        report: dict[str, Any] = {name: result.to_json() for name, result in self.results.items()}
        return report | {"metadata": {name: about.to_json() for name, about in self.metadata.items()}}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_json` to ``path`` and return it; a file there is replaced."""
        write_json_atomic(Path(path), self.to_json())
        return Path(path)

    def table(self) -> str:
        """Every bias type and domain, as ``fedbias evaluate`` prints them."""
        return evaluation_table(self.to_json())

    def __repr__(self) -> str:
        bundled = [name for name, about in self.metadata.items() if MINI_DATA in Path(about.file).parents]
        return evaluation_summary(self.to_json(), bundled)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    benchmarks: str | Sequence[str] = BENCHMARKS,
    data_dir: str | os.PathLike[str] | None = None,
    crows_reduction: str = "sum",
    stereoset_reduction: str = "mean",
    batch_tokens: int = 4096,
    seed: int = 2023,
    adapter: str | None = None,
) -> BiasResult:
    """The bias of a model in memory, on every item of the benchmarks.

    The model is left as it was: training or evaluation mode of every module, cache settings, and the global random
    states. Runs where the model is (CPU, GPU, spread over GPUs), with its active adapters; a progress bar is drawn on a
    terminal only.

    Args:
        model: any causal LM of Transformers, plain, quantised or a ``PeftModel``.
        tokenizer: the model's own.
        benchmarks: ``crows_pairs``, ``stereoset`` or both; a list, or text with commas.
        data_dir: folder with the data sets; without it where ``fedbias data fetch`` put them, else the bundled mini
            data (an invented world); ``"mini"`` takes those.
        crows_reduction: ``sum`` of log-probabilities, ``mean``, ``shared`` tokens, or ``matched`` (``sum`` over the
            pairs of equal token count).
        stereoset_reduction: ``mean`` or ``sum``.
        batch_tokens: rows times padded length of one batch.
        seed: of the bootstrap intervals.
        adapter: noted in the metadata.

    Returns:
        Scores in percent with n and 95% intervals (CrowS-Pairs: bootstrap over pairs; SS: Student's t over target
        terms). Definitions: docs/metrics.md.

    Raises:
        UserError: an unknown name, a data set that is missing or damaged, a tokenizer with neither BOS nor EOS or not
            of this model, a sentence that is too long for it, or a score that is not finite. The item is named.
    """
    names = list(dict.fromkeys(split_list(benchmarks) if isinstance(benchmarks, str) else benchmarks))
    with named_as_keywords():
        _check(names, crows_reduction, stereoset_reduction, batch_tokens, seed)
    found = {name: load_benchmark(name, None if data_dir is None else os.fspath(data_dir)) for name in names}
    announce_mini_data(found, {})
    return measure_on(
        found,
        model,
        tokenizer,
        reductions={"crows_pairs": crows_reduction, "stereoset": stereoset_reduction},
        batch_tokens=batch_tokens,
        seed=seed,
        adapter=adapter,
    )


def measure_on(
    benchmarks: Mapping[str, Benchmark],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reductions: Mapping[str, str],
    batch_tokens: int,
    seed: int,
    adapter: str | None = None,
) -> BiasResult:
    """:func:`measure` on benchmarks that are loaded; processes that torch.distributed connects share the work.

    Args:
        benchmarks: name -> benchmark.
        model: see :func:`measure`.
        tokenizer: the model's.
        reductions: name -> sentence-score reduction.
        batch_tokens: see :func:`measure`.
        seed: of the bootstrap.
        adapter: path of the adapter, for the metadata.
    """
    results: dict[str, CrowsPairsResult | StereoSetResult] = {}
    metadata = {}
    with build_progress() as progress, progress.task("score sentences", count_texts(benchmarks)) as advance:
        scorer = SentenceScorer(
            model,
            tokenizer,
            max_batch_tokens=batch_tokens,
            progress=advance,
            plans=PlanCache(plans_folder()),
            processes=running_processes(),
        )
        for name, benchmark in benchmarks.items():
            scores: Any = benchmark.score(scorer, reductions[name])
            results[name] = benchmark.result(scores, seed=seed)
            metadata[name] = ResultMetadata.build(benchmark, results[name], seed=seed, scorer=scorer, adapter=adapter)
    return BiasResult(results, metadata)


def measure_predictions(path: str, *, data_dir: str | None, seed: int) -> BiasResult:
    """Published per-sentence StereoSet predictions, as :func:`measure` gives a model's."""
    stereoset: Any = load_benchmark("stereoset", data_dir)
    result = stereoset.result(stereoset.score_predictions(path), seed=seed)
    return BiasResult({"stereoset": result}, {"stereoset": ResultMetadata.build(stereoset, result, seed=seed)})


def _check(names: Sequence[str], crows: str, stereoset: str, batch_tokens: int, seed: int) -> None:
    """Refuse what cannot be measured, by the rules of the flags of these names."""
    if not names:
        raise UserError("benchmarks is empty: there is nothing to measure; give crows_pairs, stereoset or both.")
    flags = options(BiasArguments)
    flags["bias_benchmarks"].check("benchmarks", ",".join(names))
    flags["crows_reduction"].check("crows_reduction", crows)
    flags["stereoset_reduction"].check("stereoset_reduction", stereoset)
    flags["bias_batch_tokens"].check("batch_tokens", batch_tokens)
    check_range("seed", seed, 0, LARGEST_SEED)
