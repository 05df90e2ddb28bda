"""An attacker who knows the rule of the server: it stays below the loss gate and hides its bias on the benchmarks.

This package's own, made for ``--aggregation predictive`` (docs/predictive.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.options import option
from fedbias_plugin.updates.probe_gaming import ScaledGaming

if TYPE_CHECKING:
    from random import Random

    from fedbias_plugin.data.partition import ClientDataset, Partition
    from fedbias_plugin.data.rows import Row


@dataclass
class Adaptive(ScaledGaming):
    """Trains on its own rows, on clean ones and on benchmark sentences, and sends ``theta + s (theta_i - theta)``.

    What it knows: the formula and the defaults of ``predictive``; the benchmarks, all items with both sentences; the
    public data set of clean rows. It does not know the seed: neither which items are probe items, nor which rows are
    held out. No held-out row is among its rows, so that the loss of the report half stays a test. It does not see the
    other clients' updates, nor their losses, and trains as the host trains it: it cannot look for its best s.

    How that answers the rule: clean rows bring L_i to the median, where the gate is open; the less stereotypical
    sentence of items, drawn from all of them, brings the mean margin of its update to about nothing, where no bias is
    predicted; what remains is bias outside the benchmarks, times s.
    """

    adaptive_clean: float = option(1.0, "clean rows that the adaptive attacker adds, per row of its own", at_least=0)
    adaptive_sentences: float = option(
        0.5, "benchmark sentences that the adaptive attacker adds, per row of its own", above=0
    )

    def extra_rows(
        self, dataset: ClientDataset, sentences: Sequence[Row], partition: Partition, draws: Random
    ) -> list[Row]:
        """Sentences, then clean rows of the data set that nobody holds out and that are not its own."""
        extra = self._drawn(dataset, sentences, self.adaptive_sentences, "sentences of the benchmarks", draws)
        if not self.adaptive_clean or "clean" not in partition.sources:
            return extra
        tests = [row for client in partition.clients for row in client.test]
        away = {_text(row) for row in (*partition.heldout, *dataset.rows, *tests)}
        pool = [row for row in partition.sources["clean"].rows if _text(row) not in away]
        return [*extra, *self._drawn(dataset, pool, self.adaptive_clean, "clean rows", draws)]


def _text(row: Row) -> tuple[str, str]:
    return row.instruction, row.response
