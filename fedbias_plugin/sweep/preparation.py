"""What is read and checked before the first run of a sweep is started: data, and whether every run gets its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.errors import UserError
from fedbias_plugin.flags import build
from fedbias_plugin.inputs import load_benchmark
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
    """Read every data set that the runs need, once, and deal rows as they will.

    Returns:
        benchmark, or kind and flag of a data set (``clean auto``) -> sha256 of its files.

    Raises:
        UserError: a data set is missing or damaged, or a run (named) asks for more rows than there are.
    """
    hashes: dict[str, str] = {}
    sources: dict[tuple[str, str, Any], RowSource] = {}
    dealt: set[tuple[Any, ...]] = set()
    for run in planned:
        settings = run.settings
        arguments = build(BiasArguments, [("the sweep", settings)])
        for name in arguments.benchmark_names:
            if name not in hashes:
                hashes[name] = load_benchmark(name, arguments.data_dir).sha256
        key = tuple(settings[name] for name in DEALT)
        if arguments.scenario == "none" or key in dealt:
            continue
        dealt.add(key)
        for kind, name in (("clean", arguments.clean_dataset), ("biased", arguments.biased_dataset)):
            if (kind, name, arguments.data_dir) not in sources:
                source = load_rows(name, kind, arguments.data_dir)
                sources[kind, name, arguments.data_dir] = source
                hashes[f"{kind} {name}"] = source.sha256
        clean = sources["clean", arguments.clean_dataset, arguments.data_dir]
        biased = sources["biased", arguments.biased_dataset, arguments.data_dir]
        shares = biased_shares(arguments.scenario, settings["num_clients"], settings["seed"], arguments.custom_shares)
        try:
            partition(clean, biased, shares, arguments.client_samples, settings["seed"], arguments.heldout_samples)
        except UserError as error:
            raise UserError(f"run {run.name}: {error}") from None
    return hashes
