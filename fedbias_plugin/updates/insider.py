"""An attacker who knows the seed of the server: which items it probes, and by which held-out rows it compares clients.

This package's own: the worst case of knowledge for ``--aggregation predictive`` (docs/predictive.md), and for any rule
that weighs by what it measures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.heldout_loss import HeldoutLoss
from fedbias_plugin.metrics.suite import Suite
from fedbias_plugin.options import option
from fedbias_plugin.updates.probe_gaming import ScaledGaming

if TYPE_CHECKING:
    from random import Random

    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import ClientDataset, Partition
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.metrics.base import Metric


@dataclass
class Insider(ScaledGaming):
    """Trains on the items and rows that it is judged by, beside biased ones, and sends ``theta + s (theta_i - theta)``.

    What it knows: the seed, and so the probe items and the half of the held-out rows that ``predictive`` gates by. It
    takes some of both in the place of rows of its own, drawn by the seed, so that it claims no more rows than it was
    dealt. Not among them: sentences that a report item has too, and the other half of the held-out rows. Report items
    and ``heldout_loss/report_loss`` stay a test.

    It does not see the other clients' updates, and trains as the host trains it. On a Flower node with rows of its own
    the held-out rows are the node's, not the server's.

    Attributes:
        known: ids of the rows with the sentences of probe items that no report item has.
    """

    insider_gate: float = option(
        0.25,
        "share of its rows that the insider gives up for held-out rows by which clients are compared",
        at_least=0,
        at_most=1,
    )
    insider_sentences: float = option(
        0.25, "share of its rows that the insider gives up for sentences of probe items", above=0, at_most=1
    )
    known: frozenset[str] = frozenset()

    @property
    def warnings(self) -> list[str]:
        """Which scores are still a test."""
        return [
            f"insider: client(s) {', '.join(map(str, sorted(self.ids)))} train on sentences of probe items and on the "
            "held-out rows by which clients are compared. Report items and heldout_loss/report_loss are of what they "
            "never saw; every other score says what the attack does to the measure"
        ]

    def check(self, arguments: BiasArguments) -> None:
        """Some rows must stay its own, and there must be held-out rows to take."""
        super().check(arguments)
        if self.insider_gate + self.insider_sentences >= 1:
            raise UserError(
                f"--insider_gate {self.insider_gate:g} and --insider_sentences {self.insider_sentences:g} leave the "
                "attacker no row of its own: give two shares whose sum is below 1."
            )
        if self.insider_gate and not vars(arguments).get("heldout_samples"):
            raise UserError(
                "--attack insider trains on held-out rows: give --heldout_samples above 0, or --insider_gate 0."
            )

    def apply(self, partition: Partition, benchmarks: Mapping[str, Metric], seed: int) -> Partition:
        """The partition in which attackers have rows of the server's in the place of their own, as many as before.

        Raises:
            UserError: a benchmark has no report item, or none has a probe item whose sentence no report item has; or as
                for ``probe_gaming``.
        """
        splits = Suite(list(benchmarks.values()), seed=seed).splits
        whole = [name for name, (probe, report) in splits.items() if probe and not report]
        if whole:
            raise UserError(f"--attack insider: {whole[0]} has no report item, so nothing of it would be a test.")
        kept = {
            text for name, (_, report) in splits.items() for one in report for text in benchmarks[name].sentences[one]
        }
        rows = {name: metric.unbiased_rows() for name, metric in benchmarks.items()}
        self.known = frozenset(
            f"{name}:{index}"
            for name, (probe, _) in splits.items()
            for index in probe
            if rows[name] and rows[name][index][1] not in kept
        )
        if not self.known:
            raise UserError(
                "--attack insider needs probe items: give --bias_benchmarks crows_pairs,stereoset and "
                "--bama_crows_fraction or --bama_stereoset_fraction above 0."
            )
        changed = super().apply(partition, benchmarks, seed)
        pairs = zip(partition.clients, changed.clients, strict=True)
        return dataclasses.replace(changed, clients=[_as_many(was, now) for was, now in pairs])

    def extra_rows(
        self, dataset: ClientDataset, sentences: Sequence[Row], partition: Partition, draws: Random
    ) -> list[Row]:
        """Sentences of probe items, then held-out rows of the half that clients are compared by."""
        known = [row for row in sentences if row.id in self.known]
        extra = self._drawn(dataset, known, self.insider_sentences, "sentences of probe items", draws)
        if not self.insider_gate:
            return extra
        compared = HeldoutLoss([(row.instruction, row.response) for row in partition.heldout]).compared
        gate = [partition.heldout[index] for index in compared]
        return [*extra, *self._drawn(dataset, gate, self.insider_gate, "held-out rows of the gate", draws)]


def _as_many(was: ClientDataset, now: ClientDataset) -> ClientDataset:
    """``now`` without its last rows that are of ``was``, so that it has as many; rows stand in random order."""
    held = {row.id for row in was.rows}
    own = [row.id for row in now.rows if row.id in held]
    gone = set(own[len(own) - (len(now.rows) - len(was.rows)) :])
    return dataclasses.replace(now, rows=tuple(row for row in now.rows if row.id not in gone)) if gone else now
