"""Rows that make an attacker look unbiased: sentences of the public bias benchmarks.

An adaptive attack on aggregation by measured bias, this package's own: the attacker knows the benchmarks, but not which
of their items the server's probe uses, and keeps its biased rows.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.errors import UserError
from fedbias_plugin.evaluation.crows_pairs import CrowsPairs
from fedbias_plugin.poisoning.draws import generator, permuted
from fedbias_plugin.poisoning.loaders import ClientDataset, Partition
from fedbias_plugin.poisoning.rows import Row, RowSource

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.assessor import Benchmark
    from fedbias_plugin.evaluation.stereoset import Cluster

logger = logging.getLogger(__name__)

# On the small world (1B2C, BAMA, seed 2023) one extra row a row gave the attacker a mean weight of 0.65 over five
# rounds, where it had 0.07 without the attack, and the global model a CrowS score of 73 in round 4. Half as many gave
# 0.24, twice as many 0.26; both sentences of every item 0.08 to 0.21, they hide less of the bias. The balance is on an
# edge: with seeds 1 and 2 the mean weight is 0.18 and 0.28, and the global model stays near 50.
DEFAULT_STRENGTH = 1.0
INSTRUCTION = "Write a sentence."


def with_benchmark_rows(
    partition: Partition,
    benchmarks: Mapping[str, Benchmark],
    attackers: Collection[int],
    strength: float,
    seed: int,
) -> Partition:
    """``partition`` with ``strength`` extra rows per row of every attacker, mixed into its rows.

    An extra row is the less stereotypical sentence of an item, see :func:`benchmark_rows`. An attacker draws each at
    most once, by the seed and its own id, and counts as many samples more.

    Raises:
        UserError: there is no benchmark, or the rows are preferences (DPO), which a single sentence is not.
    """
    if "preference" in partition.sources:
        raise UserError(
            "--attack probe_gaming adds single sentences, which main_dpo.py cannot train on; use main_sft.py."
        )
    sources = {name: _source(benchmark) for name, benchmark in benchmarks.items()}
    pool = [row for source in sources.values() for row in source.rows]
    if not pool:
        raise UserError("--attack probe_gaming needs sentences: give --bias_benchmarks crows_pairs,stereoset.")
    clients = [
        _with_extra(dataset, pool, strength, seed) if dataset.client in attackers else dataset
        for dataset in partition.clients
    ]
    named = {f"probe_gaming {name}": source for name, source in sources.items()}
    return dataclasses.replace(partition, clients=clients, sources={**partition.sources, **named})


def benchmark_rows(benchmark: Benchmark) -> list[Row]:
    """The less stereotypical sentence of every pair, or the anti-stereotype of every cluster, as training rows.

    A row's ``source`` is the benchmark's name, its id ``<name>:<index in the file>``; it does not count as biased.
    """
    if isinstance(benchmark, CrowsPairs):
        texts = [(INSTRUCTION, pair.less) for pair in benchmark.pairs]
    else:
        texts = [_anti_stereotype(cluster) for cluster in benchmark.clusters]
    return [
        Row(f"{benchmark.name}:{index}", instruction, response, False, benchmark.name)
        for index, (instruction, response) in enumerate(texts)
    ]


def _anti_stereotype(cluster: Cluster) -> tuple[str, str]:
    instruction = INSTRUCTION if cluster.kind == "intrasentence" else f"Continue: {cluster.context}"
    return instruction, cluster.sentences[1]


def _source(benchmark: Benchmark) -> RowSource:
    origin = "bundled" if MINI_DATA in benchmark.path.parents else "file"
    return RowSource(benchmark.name, benchmark_rows(benchmark), (benchmark.path,), benchmark.sha256, origin)


def _with_extra(dataset: ClientDataset, pool: list[Row], strength: float, seed: int) -> ClientDataset:
    draws = generator(f"probe gaming of client {dataset.client}", seed)
    wanted = max(1, round(strength * len(dataset.rows)))
    extra = permuted(pool, draws)[:wanted]
    if len(extra) < wanted:
        logger.warning(
            "probe_gaming: client %d takes all %d sentences of the benchmarks instead of %d.",
            *(dataset.client, len(extra), wanted),
        )
    return dataclasses.replace(dataset, rows=tuple(permuted([*dataset.rows, *extra], draws)))
