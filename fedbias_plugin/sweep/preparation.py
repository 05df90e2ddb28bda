"""What is read, checked and told before the first run of a sweep is started: data, rows of every run, GPU memory."""

from __future__ import annotations

from collections.abc import Sequence

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.data.public_rows import public_data, with_public_rows
from fedbias_plugin.data.rows import RowSource
from fedbias_plugin.data.sources import read_once
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.inputs import announce_mini_data, dealt_rows, metric_source
from fedbias_plugin.flags import build
from fedbias_plugin.metrics.base import Metric
from fedbias_plugin.registry import active
from fedbias_plugin.sweep.configs import ModelConfig
from fedbias_plugin.sweep.plan import PlannedRun

OF_ROWS = ("num_clients", "task", "client_test_fraction")
"""Settings beside the split's by which the rows of runs differ."""


def check_data(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """Read every data set that the runs need and deal rows as they will; says which data are the bundled ones.

    Returns:
        benchmark, or kind and flag of a data set (``clean auto``) -> sha256 of its files.

    Raises:
        UserError: a data set is missing or damaged, or a run (named) asks for more rows than there are.
    """
    benchmarks: dict[str, Metric] = {}
    sources: dict[str, RowSource] = {}
    dealt = set()
    with read_once():
        for run in planned:
            try:
                arguments = build(BiasArguments, [("the sweep", run.settings)])
                for metric in active("metric", arguments):
                    if metric.of_clients and metric.name not in benchmarks:
                        metric.prepare(metric_source(arguments.data_dir))
                        benchmarks[metric.name] = metric
                told = (str(arguments.split and vars(arguments.split)), *(run.settings.get(name) for name in OF_ROWS))
                told += (public_data(run.settings),)
                if arguments.split is None or told in dealt:
                    continue
                dealt.add(told)
                rows = dealt_rows(arguments, run.settings["num_clients"], run.settings["seed"])
                partition = with_public_rows(rows, run.settings)
            except UserError as error:
                raise UserError(f"run {run.name}: {error}") from None
            for kind, source in partition.sources.items():
                sources[f"{kind} {run.settings.get(f'{kind}_dataset', source.name)}"] = source
    announce_mini_data(benchmarks.values(), sources)
    hashes = {name: metric.sha256 for name, metric in benchmarks.items()}
    return hashes | {name: source.sha256 for name, source in sources.items()}


def memory_lines(model: ModelConfig, planned: Sequence[PlannedRun]) -> list[str]:
    """What a run needs of a GPU by the model's file, and whether ours has it; a line for each kind of training."""
    import torch

    lines = []
    for kind, what in (("train", "adapters"), ("full_finetuning", "every weight")):
        needed = model.memory_gib.get(kind)
        if needed is None or all(run.settings["use_peft"] is not (kind == "train") for run in planned):
            continue
        line = f"needs about {needed:.0f} GiB of GPU memory a run to train {what}, by the model's file"
        if torch.cuda.is_available():
            found = torch.cuda.get_device_properties(0).total_memory / 2**30
            line += f"; the GPU has {found:.0f}" + (": TOO LITTLE" if found < needed else "")
        lines.append(line)
    return lines
