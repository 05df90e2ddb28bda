"""What is read and checked before the first run of a sweep is started: data, and whether every run gets its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.assessor import Benchmark
from fedbias_plugin.flags import build
from fedbias_plugin.inputs import announce_mini_data, load_benchmark
from fedbias_plugin.poisoning.loaders import partition
from fedbias_plugin.poisoning.rows import RowSource
from fedbias_plugin.poisoning.scenarios import biased_shares
from fedbias_plugin.poisoning.sources import load_rows
from fedbias_plugin.sweep.plan import PlannedRun

DEALT = (
    "scenario",
    "biased_shares",
    "num_clients",
    "client_samples",
    "heldout_samples",
    "clean_dataset",
    "biased_dataset",
)


def check_data(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """Read every data set that the runs need, once, and deal rows as they will; says which data are the bundled ones.

    Returns:
        benchmark, or kind and flag of a data set (``clean auto``) -> sha256 of its files.

    Raises:
        UserError: a data set is missing or damaged, or a run (named) asks for more rows than there are.
    """
    read = _Read()
    for run in planned:
        try:
            read.add(run)
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from None
    announce_mini_data(read.benchmarks, {f"{kind} {name}": rows for (kind, name), rows in read.sources.items()})
    hashes = {name: benchmark.sha256 for name, benchmark in read.benchmarks.items()}
    return hashes | {f"{kind} {name}": source.sha256 for (kind, name), source in read.sources.items()}


class _Read:
    """What was read so far."""

    def __init__(self) -> None:
        self.benchmarks: dict[str, Benchmark] = {}
        self.sources: dict[tuple[str, str], RowSource] = {}
        self._dealt: set[tuple[Any, ...]] = set()

    def add(self, run: PlannedRun) -> None:
        """Read what ``run`` needs and nobody before it did."""
        settings = run.settings
        arguments = build(BiasArguments, [("the sweep", settings)])
        for name in arguments.benchmark_names:
            if name not in self.benchmarks:
                self.benchmarks[name] = load_benchmark(name, arguments.data_dir)
        key = tuple(settings[name] for name in DEALT)
        if arguments.scenario == "none" or key in self._dealt:
            return
        self._dealt.add(key)
        clean = self._rows("clean", arguments.clean_dataset, arguments.data_dir)
        biased = self._rows("biased", arguments.biased_dataset, arguments.data_dir)
        shares = biased_shares(arguments.scenario, settings["num_clients"], settings["seed"], arguments.custom_shares)
        partition(clean, biased, shares, arguments.client_samples, settings["seed"], arguments.heldout_samples)

    def _rows(self, kind: str, name: str, data_dir: str | None) -> RowSource:
        if (kind, name) not in self.sources:
            self.sources[kind, name] = load_rows(name, kind, data_dir)
        return self.sources[kind, name]
