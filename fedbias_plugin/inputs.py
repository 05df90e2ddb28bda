"""Reads and checks the benchmark files a run or an evaluation needs, before anything is trained or written."""

from __future__ import annotations

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.evaluation.assessor import LOADERS, Benchmark, BiasAssessor
from fedbias_plugin.poisoning.catalog import locate


def load_benchmark(name: str, data_dir: str | None) -> Benchmark:
    """CrowS-Pairs or StereoSet from where this machine has it, else the bundled mini set of the same format."""
    return LOADERS[name](locate(name, data_dir, kind=name).paths[0])


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
