"""Rows that make an attacker look unbiased: sentences of the public bias benchmarks.

An adaptive attack on aggregation by measured bias, this package's own: the attacker knows the benchmarks, but not which
of their items the server's probe uses, and keeps its biased rows.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.assets import MINI_DATA
from fedbias_plugin.data.base import Transform
from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.rows import Row, RowSource
from fedbias_plugin.errors import UserError
from fedbias_plugin.updates.attacks import Attack, scaled

if TYPE_CHECKING:
    from random import Random

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import ClientDataset, Partition
    from fedbias_plugin.metrics.base import Metric
    from fedbias_plugin.state import State

logger = logging.getLogger(__name__)

# On the small world (1B2C, BAMA, seed 2023) one extra row a row gave the attacker a mean weight of 0.65 over five
# rounds, where it had 0.07 without the attack, and the global model a CrowS score of 73 in round 4. Half as many gave
# 0.24, twice as many 0.26; both sentences of every item 0.08 to 0.21, they hide less of the bias. The balance is on an
# edge: with seeds 1 and 2 the mean weight is 0.18 and 0.28, and the global model stays near 50.
DEFAULT_STRENGTH = 1.0


@dataclass
class ProbeGaming(Attack, Transform):
    """Attackers train on their own rows and on sentences of the benchmarks."""

    reads_benchmarks = True

    @property
    def warnings(self) -> list[str]:
        """The benchmarks' sentences are training rows, report items among them."""
        return [
            f"probe gaming: client(s) {', '.join(map(str, sorted(self.ids)))} train on benchmark sentences. The "
            "scores say what the attack does to the measure, not how biased the model is"
        ]

    def check(self, arguments: BiasArguments) -> None:
        """It needs rows that the plugin deals, and benchmarks."""
        super().check(arguments)
        if arguments.scenario == "none" or not arguments.benchmark_names:
            raise UserError(
                f"--attack {self.name} adds rows from the bias benchmarks to those that --scenario deals: give "
                "--scenario 1B2C or another, and --bias_benchmarks crows_pairs,stereoset."
            )

    def apply(self, partition: Partition, benchmarks: Mapping[str, Metric], seed: int) -> Partition:
        """The partition with ``s`` extra rows per row of every attacker, mixed into its rows.

        An extra row is the less stereotypical sentence of an item, see :func:`benchmark_rows`. An attacker draws each
        at most once, by the seed and its own id, and counts as many samples more.

        Raises:
            UserError: there is no benchmark, or the rows are preferences (DPO), which a single sentence is not.
        """
        if "preference" in partition.sources:
            raise UserError(
                f"--attack {self.name} adds single sentences, which --task dpo and main_dpo.py cannot train on: use "
                "--task sft, or main_sft.py."
            )
        sources = {}
        for name, benchmark in benchmarks.items():
            rows, paths = benchmark_rows(name, benchmark), (benchmark.path,) if benchmark.path else ()
            origin = "bundled" if any(MINI_DATA in path.parents for path in paths) else "file"
            if rows:
                sources[f"{self.name} {name}"] = RowSource(name, rows, paths, benchmark.sha256, origin)
        pool = [row for source in sources.values() for row in source.rows]
        if not pool:
            raise UserError(f"--attack {self.name} needs sentences: give --bias_benchmarks crows_pairs,stereoset.")
        clients = []
        for dataset in partition.clients:
            if dataset.client in self.ids:
                draws = generator(f"probe gaming of client {dataset.client}", seed)
                extra = self.extra_rows(dataset, pool, partition, draws)
                dataset = dataclasses.replace(dataset, rows=tuple(permuted([*dataset.rows, *extra], draws)))
            clients.append(dataset)
        return dataclasses.replace(partition, clients=clients, sources={**partition.sources, **sources})

    def extra_rows(
        self, dataset: ClientDataset, sentences: Sequence[Row], partition: Partition, draws: Random
    ) -> list[Row]:
        """What an attacker that holds ``dataset`` trains on beside it."""
        return self._drawn(
            dataset, sentences, self.attack_strength or DEFAULT_STRENGTH, "sentences of the benchmarks", draws
        )

    def _drawn(
        self, dataset: ClientDataset, pool: Sequence[Row], per_row: float, what: str, draws: Random
    ) -> list[Row]:
        wanted = max(1, round(per_row * len(dataset.rows)))
        extra = permuted(pool, draws)[:wanted]
        if len(extra) < wanted:
            said = (self.name, dataset.client, len(extra), what, wanted)
            logger.warning("%s: client %d takes all %d %s instead of %d.", *said)
        return extra


@dataclass
class ScaledGaming(ProbeGaming):
    """Probe gaming of which ``--attack_strength`` s is no number of rows: it sends ``theta + s (theta_i - theta)``."""

    def forge(self, round_number: int, client: int, global_state: State, local_state: State, clients: int) -> State:
        """The state times s; the very state it trained at s = 1."""
        strength = self.attack_strength or 1.0
        return local_state if strength == 1.0 else scaled(client, global_state, local_state, strength)


def benchmark_rows(name: str, benchmark: Metric) -> list[Row]:
    """The less stereotypical sentence of every item as a training row, which does not count as biased.

    A row's ``source`` is the benchmark's name, its id ``<name>:<index in the file>``.
    """
    return [
        Row(f"{name}:{index}", instruction, response, False, name)
        for index, (instruction, response) in enumerate(benchmark.unbiased_rows())
    ]
