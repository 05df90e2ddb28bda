"""The contracts of a split and a partitioner (who holds which rows) and of a transform (what becomes of them)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.extension import Extension
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import RowSource
    from fedbias_plugin.metrics.base import Metric

LABEL_FIELD: Any = option("category", "column of a row's label", read_when={})
"""The flag of whatever looks at labels."""


@dataclass(frozen=True)
class Deal:
    """What is to be dealt.

    Attributes:
        clean: the clean rows.
        biased: the biased rows; None where no share is above 0.
        shares: biased share of each client, in [0, 1], by client id.
        client_samples: the most rows of a client.
        seed: of every draw.
        heldout: clean rows to keep from every client.
        scenario: for messages and the manifest.
    """

    clean: RowSource
    biased: RowSource | None
    shares: Sequence[float]
    client_samples: int
    seed: int
    heldout: int
    scenario: str

    @property
    def sources(self) -> dict[str, RowSource]:
        """By kind."""
        return {"clean": self.clean, **({"biased": self.biased} if self.biased else {})}


@dataclass
class Partitioner(Extension):
    """Deals clean rows to clients, within what a scenario says of biased ones; chosen by ``--partitioner NAME``.

    One that looks at labels has the flag ``label_field`` (:data:`LABEL_FIELD`): the manifest counts rows by it.
    """

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where it does not fit the run's ``flags``; called before anything is read."""

    @abstractmethod
    def deal(self, what: Deal) -> Partition:
        """Every client's rows, at least one each, no row twice; the same seed gives the same on every machine.

        Raises:
            UserError: the rows do not suffice, or lack what they are dealt by.
        """


@dataclass
class Split(Extension):
    """Deals rows to clients; chosen by ``--scenario NAME``."""

    @property
    def num_clients(self) -> int | None:
        """How many clients its flags speak of; None where they fit any number."""
        return None

    def check(self, num_clients: int | None = None) -> None:  # most flags need no more than their range
        """Called before anything is read, once their number is known with the clients.

        Raises:
            UserError: flags contradict each other, or do not fit so many clients.
        """

    def shares(self, num_clients: int, seed: int) -> list[float] | None:
        """The share of biased rows that each client is to hold, by client id; None where it is not known beforehand."""
        return None

    @abstractmethod
    def deal(self, arguments: BiasArguments, num_clients: int, seed: int) -> Partition:
        """Every client's rows, at least one each, and clean rows that no client holds.

        Raises:
            UserError: a missing or damaged file, or too few rows or clients (with the largest setting that fits).
        """

    def deal_preferences(
        self, source: RowSource, num_clients: int, seed: int, arguments: BiasArguments | None = None
    ) -> Partition:
        """Every client's preference rows from ``source``, for DPO.

        With ``arguments``, as in a run of ``--task dpo``, rows that no client holds too; a patched OpenFedLLM has none.

        Raises:
            UserError: too few rows, or the split deals none of this kind.
        """
        raise UserError(
            f"--scenario {self.name} deals no preference rows, which DPO trains on: give another, or --task sft; with "
            "OpenFedLLM use main_sft.py."
        )


@dataclass
class Transform(Extension):
    """Changes the rows that clients hold, before training; switched on by its own flags (``is_on``).

    Attributes:
        reads_benchmarks: whether it must see what the run measures, which clients elsewhere do not have otherwise.
    """

    reads_benchmarks: ClassVar[bool] = False

    @property
    def warnings(self) -> list[str]:
        """What a reader of the run's numbers must know."""
        return []

    def read(self, data_dir: str | None) -> None:  # most need no file
        """Read what it needs beside the rows, from ``--data_dir`` or where data sets are looked for; called first.

        Raises:
            UserError: a file is missing or damaged.
        """

    @abstractmethod
    def apply(self, partition: Partition, benchmarks: Mapping[str, Metric], seed: int) -> Partition:
        """The partition with changed rows; ``partition`` itself is not modified. Numbers in a client's ``notes`` and
        what is added to ``sources`` stand in the manifest.

        Args:
            partition: every client's rows.
            benchmarks: name -> what the run measures, for its ``texts`` and ``unbiased_rows``.
            seed: of the run.

        Raises:
            UserError: it cannot work with these rows.
        """
