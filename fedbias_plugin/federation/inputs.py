"""What a run reads before anything is trained or written: every client's rows, and what is measured on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedbias_plugin.arguments import BiasArguments
from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.catalog import locate, mini_notice
from fedbias_plugin.data.client_tests import with_client_tests
from fedbias_plugin.data.partition import ClientDataset, Partition, partition_hash
from fedbias_plugin.data.public_rows import public_warnings, with_public_rows
from fedbias_plugin.data.rows import RowSource
from fedbias_plugin.data.sources import check_columns_are_found, load_rows
from fedbias_plugin.errors import UserError
from fedbias_plugin.federation.run_description import (
    HostRun,
    client_tests,
    heldout_pairs,
    labelled_rows,
    preferred_rows,
)
from fedbias_plugin.metrics.base import Metric, Source
from fedbias_plugin.metrics.client_tests import ClientTests, uncovered
from fedbias_plugin.metrics.overlap import overlap_warnings, row_overlap_warnings
from fedbias_plugin.metrics.suite import Suite
from fedbias_plugin.registry import active, load
from fedbias_plugin.updates.pipeline import Pipeline

logger = logging.getLogger(__name__)


@dataclass
class Inputs:
    """The rows and the metrics of a run.

    Attributes:
        partition: every client's rows; None where the host brings its own.
        shares: client id -> share of biased rows, where it is known.
        suite: the metrics, prepared.
        pipeline: the stages that updates pass.
        tests: every client's own test rows; None where there are none.
        said: warnings that the user has read already.
        warnings: what a reader of the run's numbers must know, those in ``said`` among them.
    """

    partition: Partition | None
    shares: dict[int, float]
    suite: Suite
    pipeline: Pipeline
    tests: ClientTests | None = None
    said: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def rows(self) -> dict[int, int]:
        """Client id -> rows it holds, where they are known."""
        return {dataset.client: len(dataset.rows) for dataset in self.partition.clients} if self.partition else {}

    @property
    def hashes(self) -> dict[str, str]:
        """Part of the data -> hash: the items of each metric with their split, and the clients' rows."""
        parts = self.suite.probe_record().items()
        hashes = {f"{name} items": f"{part['sha256']} {part['probe_ids_sha256']}" for name, part in parts}
        return hashes | ({"training rows": partition_hash(self.partition)} if self.partition else {})


def dealt_rows(arguments: BiasArguments, num_clients: int, seed: int) -> Partition:
    """Every client's rows as the flags deal them, test rows apart, before any transform.

    Raises:
        UserError: a data set is missing, damaged or too small, or a client has too few rows to test on some.
    """
    assert arguments.split is not None, "a host without rows of its own needs a split"
    if load("task", arguments.task).reads_preferences:
        source = load_rows(arguments.preference_dataset, "preference", arguments.data_dir, arguments.columns)
        check_columns_are_found(arguments.columns, source)
        partition = arguments.split.deal_preferences(source, num_clients, seed, arguments)
    else:
        partition = arguments.split.deal(arguments, num_clients, seed)
    partition.check(num_clients)
    return with_client_tests(partition, arguments.client_test_fraction, seed)


def load_inputs(
    arguments: BiasArguments,
    run: HostRun,
    partition: Partition | None = None,
    elsewhere: Mapping[int, ClientDataset] | None = None,
) -> Inputs:
    """Read and check everything that the flags ask for.

    Args:
        arguments: the plugin's flags.
        run: what the host does.
        partition: every client's rows, where they are not those that ``arguments`` ask for.
        elsewhere: client id -> what is known of its rows, of those that bring their own (a node of a federation).

    Raises:
        UserError: a data set is missing, damaged or too small, or a flag does not fit the run.
    """
    if arguments.client_test_fraction:
        _check_tests(partition, elsewhere)
    if partition is None and arguments.split is not None:
        partition = dealt_rows(arguments, run.num_clients, run.seed)
    if partition is not None:
        partition = with_public_rows(partition, vars(arguments))
    if run.task is not None and partition is not None:
        if elsewhere and run.task.reads_all_rows:
            raise UserError(
                f"--task {run.task.name} must see the labels of all rows, and client {min(elsewhere)} is on a node "
                "with rows of its own: let the server's flags deal all rows."
            )
        run.task.read(partition)
    shares = partition.known_shares if partition else {}
    pipeline = Pipeline(arguments, run, shares)
    metrics = active("metric", arguments)
    tests = client_tests(run, partition)
    source = metric_source(arguments.data_dir, heldout_pairs(run, partition), run.seq_length, tests)
    source = dataclasses.replace(
        source, labelled=labelled_rows(run, partition), preferred=preferred_rows(run, partition)
    )
    for metric in metrics:
        metric.prepare(source)
    of_files = {metric.name: metric for metric in metrics if metric.of_clients}
    said = announce_mini_data(metrics, partition.sources if partition else {})
    overlaps = overlap_warnings(partition, of_files)
    partition, warnings = pipeline.on_data(partition, of_files)
    is_labelled = run.task is not None and run.task.fields(vars(arguments)) is not None
    warnings = [*warnings, *uncovered(vars(arguments))]
    overlaps += [*row_overlap_warnings(partition, by_label=is_labelled), *public_warnings(partition)]
    if partition is not None and elsewhere:
        clients = [elsewhere.get(dataset.client, dataset) for dataset in partition.clients]
        partition = dataclasses.replace(partition, clients=clients)
    suite = Suite(metrics, alpha=arguments.bama_alpha, seed=run.seed)
    return Inputs(partition, shares, suite, pipeline, tests, said, [*said, *overlaps, *warnings])


def _check_tests(preferences: Partition | None, elsewhere: Mapping[int, ClientDataset] | None) -> None:
    """Refuse test rows of clients (``--client_test_fraction``) whose rows are not dealt here, or are preferences."""
    if preferences is not None:
        raise UserError(
            "--client_test_fraction measures the loss on instruction rows, and main_dpo.py trains on preferences; use "
            "main_sft.py, or drop it."
        )
    if elsewhere:
        raise UserError(
            f"--client_test_fraction: client {min(elsewhere)} is on a node with rows of its own, whose text the server "
            "does not have, so that it cannot measure on them. Drop it, or let the server's flags deal all rows."
        )


def metric_source(
    data_dir: str | None, heldout: Any = (), seq_length: int = 512, clients: ClientTests | None = None
) -> Source:
    """Data sets from where this machine has them, else the bundled mini sets of the same format."""
    return Source(lambda kind: locate(kind, data_dir, kind=kind).paths[0], heldout, seq_length, clients)


def announce_mini_data(metrics: Collection[Metric], sources: Mapping[str, RowSource]) -> list[str]:
    """Tell the user in one line which data sets are the bundled ones; returns its warnings, for the records."""
    origins = {name: source.origin for name, source in sources.items()}
    short = []
    for metric in metrics:
        path = getattr(metric, "path", None)
        if path is None or path == Path():  # a metric without a file, or one that read none
            continue
        if MINI_DATA in path.parents and not metric.mini_is_invented:
            short.append(metric.name)
        else:
            origins[metric.name] = "bundled" if MINI_DATA in path.parents else "file"
    if short:
        logger.info("Short lists of our own for %s; fedbias data list shows the published ones.", ", ".join(short))
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
