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


def announce_mini_data(benchmarks: Mapping[str, Benchmark], sources: Mapping[str, RowSource]) -> list[str]:
    """Tell the user in one line which data sets are the bundled ones; returns its warnings, for the records."""
    origins = {name: source.origin for name, source in sources.items()}
    for name, found in benchmarks.items():
        origins[name] = "bundled" if MINI_DATA in found.path.parents else "file"
    notice = mini_notice(origins)
    if notice is None:
        return []
    real = [name for name, origin in origins.items() if origin != "bundled"]
    if not real:
        logger.info(notice)
        return []
    mixed = f"Two worlds are mixed: {', '.join(real)} from files, the rest bundled; the scores do not fit the training."
    logger.warning("%s %s", notice, mixed)
    return [mixed]


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
    )
