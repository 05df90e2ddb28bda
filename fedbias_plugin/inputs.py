"""Reads and checks the benchmark files a run or an evaluation needs, before anything is trained or written."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.evaluation.assessor import LOADERS, Benchmark, BiasAssessor
from fedbias_plugin.poisoning.catalog import locate, mini_notice
from fedbias_plugin.poisoning.rows import RowSource

logger = logging.getLogger(__name__)


def load_benchmark(name: str, data_dir: str | None) -> Benchmark:
    """CrowS-Pairs or StereoSet from where this machine has it, else the bundled mini set of the same format."""
    return LOADERS[name](locate(name, data_dir, kind=name).paths[0])


def announce_mini_data(benchmarks: Mapping[str, Benchmark], sources: Mapping[str, RowSource]) -> None:
    """Tell the user in one line which data sets are the bundled ones."""
    origins = {name: source.origin for name, source in sources.items()}
    origins |= {name: "bundled" for name, found in benchmarks.items() if MINI_DATA in found.path.parents}
    notice = mini_notice(origins)
    if notice:
        logger.info(notice)


def load_assessor(arguments: BiasArguments, seed: int) -> BiasAssessor | None:
    """The assessor that ``--bias_benchmarks`` asks for, or None for ``none``."""
    if not arguments.benchmark_names:
        return None
    return BiasAssessor(
        {name: load_benchmark(name, arguments.data_dir) for name in arguments.benchmark_names},
        fractions=arguments.probe_fractions,
        reductions=arguments.reductions,
        alpha=arguments.bama_alpha,
        seed=seed,
        max_batch_tokens=arguments.bias_batch_tokens,
    )
