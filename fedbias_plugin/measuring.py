"""How biased is this model? In memory, without training: what ``fedbias evaluate`` and ``measure`` share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedbias_plugin.arguments import BENCHMARKS, BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import announce_mini_data, metric_source
from fedbias_plugin.files import write_json_atomic
from fedbias_plugin.flags import named_as_keywords, unknown_name
from fedbias_plugin.metrics.base import Block, Metric, Result, metric_class
from fedbias_plugin.metrics.results import ResultMetadata
from fedbias_plugin.metrics.scoring_choice import choose_dtype
from fedbias_plugin.options import check_range, options, split_list
from fedbias_plugin.preflight import LARGEST_SEED
from fedbias_plugin.progress import build_progress
from fedbias_plugin.registry import in_order, load, names
from fedbias_plugin.scoring.plans import PlanCache, plans_folder
from fedbias_plugin.scoring.processes import running_processes
from fedbias_plugin.scoring.scorer import SentenceScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class BiasResult:
    """What was measured, printed in a few lines.

    Attributes:
        results: metric -> its result, such as ``CrowsPairsResult``; ``result[NAME].value`` is a short way to it.
        metadata: benchmark -> data file and hash, reduction, prefix token, model, versions, seed.
    """

    results: Mapping[str, Any]
    metadata: Mapping[str, ResultMetadata]

    def __getitem__(self, benchmark: str) -> Any:
        """The result of one metric, by its name."""
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
        return "\n".join(
            line
            for metric, block in self._blocks()
            for line in (metric.table(block) if block["value"] is not None else [_not_measured(metric)])
        )

    def _blocks(self) -> list[tuple[type[Metric], Block]]:
        found = [(metric_class(name), result) for name, result in self.results.items()]
        return [(metric, metric.block(result)) for metric, result in found]

    def __repr__(self) -> str:
        blocks = self._blocks()
        lines = [_not_measured(metric) for metric, block in blocks if block["value"] is None]
        blocks = [(metric, block) for metric, block in blocks if block["value"] is not None]
        lines += [line for metric, block in blocks for line in metric.summary(block)]
        if any(metric.in_bias_score for metric, _ in blocks):
            lines.append(
                "score, SS: % of items in which the model prefers the stereotype; 50 = no preference [95% interval]"
            )
        lines += [line for metric, block in blocks for line in metric.legend(block)]
        invented = [name for name in self.metadata if metric_class(name).mini_is_invented]
        bundled = [name for name in invented if MINI_DATA in Path(self.metadata[name].file).parents]
        if bundled:
            lines.append(f"bundled mini data, an invented world, not the real benchmark: {', '.join(bundled)}")
        return "\n".join(lines)


def _not_measured(metric: type[Metric]) -> str:
    return f"{metric.title:<23}  not measured"


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    benchmarks: str | Sequence[str] = BENCHMARKS,
    data_dir: str | os.PathLike[str] | None = None,
    batch_tokens: int = 4096,
    seed: int = 2023,
    adapter: str | None = None,
    scoring_dtype: str = "float32",
    **flags: Any,
) -> BiasResult:
    """The bias of a model in memory, on every item of the benchmarks.

    The model is left as it was: training or evaluation mode of every module, cache settings, and the global random
    states. Runs where the model is (CPU, GPU, spread over GPUs), with its active adapters; a progress bar is drawn on a
    terminal only.

    Args:
        model: any causal LM of Transformers, plain, quantised or a ``PeftModel``.
        tokenizer: the model's own.
        benchmarks: names of metrics; a list, or text with commas.
        data_dir: folder with the data sets; without it where ``fedbias data fetch`` put them, else the bundled mini
            data (an invented world); ``"mini"`` takes those.
        batch_tokens: rows times padded length of one batch.
        seed: of the bootstrap intervals.
        adapter: noted in the metadata.
        scoring_dtype: ``float32``: the model's own type; ``bfloat16`` for a float32 model; ``auto``: that where the
            machine has units for it and a trial on the items changes next to nothing.
        flags: of the metrics, as ``fedbias evaluate --help`` lists them: ``crows_reduction`` (``sum`` of
            log-probabilities, ``mean``, ``shared`` tokens, or ``matched``: ``sum`` over the pairs of equal token
            count), ``stereoset_reduction`` (``mean`` or ``sum``).

    Returns:
        Scores in percent with n and 95% intervals (CrowS-Pairs: bootstrap over pairs; SS: Student's t over target
        terms). Definitions: docs/metrics.md.

    Raises:
        UserError: an unknown name, a data set that is missing or damaged, a tokenizer with neither BOS nor EOS or not
            of this model, a sentence that is too long for it, or a score that is not finite. The item is named.
    """
    chosen = list(dict.fromkeys(split_list(benchmarks) if isinstance(benchmarks, str) else benchmarks))
    with named_as_keywords():
        if not chosen:
            raise UserError(f"benchmarks is empty: there is nothing to measure; give {BENCHMARKS} or one of them.")
        known = options(BiasArguments)
        known["bias_benchmarks"].check("benchmarks", ",".join(chosen))
        known["bias_batch_tokens"].check("batch_tokens", batch_tokens)
        known["scoring_dtype"].check("scoring_dtype", scoring_dtype)
        check_range("seed", seed, 0, LARGEST_SEED)
        metrics = metrics_of(chosen, flags)
    read_metrics(metrics, None if data_dir is None else os.fspath(data_dir))
    how: Any = {"batch_tokens": batch_tokens, "seed": seed, "adapter": adapter, "scoring_dtype": scoring_dtype}
    return measure_on(metrics, model, tokenizer, **how)


def metrics_of(chosen: Sequence[str], flags: Mapping[str, Any]) -> list[Metric]:
    """The metrics ``chosen`` by name, with those of ``flags`` that are theirs.

    Raises:
        UserError: a flag that no metric here has, or a wrong value.
    """
    classes = {name: load("metric", name) for name in in_order("metric", chosen)}
    theirs = {name: [flag for flag in options(cls) if flag not in cls.of_runs] for name, cls in classes.items()}
    everyones = [flag for known in theirs.values() for flag in known]
    for flag in flags:
        if flag not in everyones:
            raise unknown_name(flag, everyones, {}, "measure()")
    made = [cls(**{flag: flags[flag] for flag in theirs[name] if flag in flags}) for name, cls in classes.items()]
    for metric, name in zip(made, classes, strict=True):
        metric.name = metric.name if metric.takes else name
    return made


def read_metrics(metrics: Sequence[Metric], data_dir: str | None) -> None:
    """Read what ``metrics`` measure on, and say which of it is bundled."""
    source = metric_source(data_dir)
    for metric in metrics:
        metric.prepare(source)
    announce_mini_data(metrics, {})


def measure_on(
    metrics: Sequence[Metric],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_tokens: int,
    seed: int,
    adapter: str | None = None,
    scoring_dtype: str = "float32",
) -> BiasResult:
    """:func:`measure` by metrics that are prepared; processes that torch.distributed connects share the work.

    Args:
        metrics: prepared.
        model: see :func:`measure`.
        tokenizer: the model's.
        batch_tokens: see :func:`measure`.
        seed: of the bootstrap.
        adapter: path of the adapter, for the metadata.
        scoring_dtype: see :func:`measure`.
    """
    results: dict[str, Any] = {}
    metadata = {}
    plans, processes = PlanCache(plans_folder()), running_processes()

    def make(dtype: str, advance: Callable[[int], None] | None = None) -> SentenceScorer:
        how: Any = {"plans": plans, "processes": processes, "progress": advance, "dtype": dtype}
        return SentenceScorer(model, tokenizer, max_batch_tokens=batch_tokens, **how)

    items = [(metric, range(len(metric.ids))) for metric in metrics if metric.of_clients and metric.text_count]
    choice = choose_dtype(scoring_dtype, model, items, make, seed=seed, processes=processes)
    texts = sum(metric.text_count for metric in metrics)
    with (
        build_progress() as progress,
        progress.task("score sentences", texts) as advance,
        make(choice.dtype, advance).tried_once() as scorer,
    ):
        for metric in metrics:
            scores = metric.measure(scorer) if metric.text_count else None
            found = Result(None, 0) if scores is None else metric.result(scores, seed=seed)
            results[metric.name] = found
            about: Any = {"scorer": scorer, "adapter": adapter, "scoring": choice.to_json()}
            metadata[metric.name] = ResultMetadata.build(metric, found, seed=seed, **about)
    return BiasResult(results, metadata)


def measure_predictions(path: str, *, data_dir: str | None, seed: int) -> BiasResult:
    """Published per-sentence StereoSet predictions, as :func:`measure` gives a model's."""
    name = next(name for name in names("metric") if hasattr(load("metric", name), "score_predictions"))
    metric: Any = load("metric", name)()
    metric.prepare(metric_source(data_dir))
    result = metric.result(metric.score_predictions(path), seed=seed)
    return BiasResult({name: result}, {name: ResultMetadata.build(metric, result, seed=seed)})
