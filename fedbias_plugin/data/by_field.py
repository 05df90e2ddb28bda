"""Clients as the data set has them: a client holds the rows of one value of a column, such as an annotator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.base import Deal, Partitioner
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row


@dataclass
class ByField(Partitioner):
    """One client a value of ``--client_field``, in their order, as FedLLM-Bench (arXiv:2406.04845) has them."""

    client_field: str | None = option(None, "column whose values are the clients")

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """A column is needed."""
        if not self.client_field:
            raise UserError("--partitioner by_field needs --client_field COLUMN, whose values are the clients.")

    def deal(self, what: Deal) -> Partition:
        """All rows of each value, cut to ``--client_samples``; the manifest says which value a client is.

        Raises:
            UserError: a row has no value, or there are more or fewer values than clients.
        """
        from fedbias_plugin.data.skew import kept_apart, skewed_partition, value_of

        heldout, rows = kept_apart(what.clean, what.heldout, what.seed)
        column = str(self.client_field)
        by_value: dict[str, list[Row]] = {}
        for row in rows:
            by_value.setdefault(value_of(row, column, "client_field"), []).append(row)
        values = sorted(by_value)
        if len(values) != len(what.shares):
            raise UserError(
                f"--client_field {column} has {len(values)} values in {what.clean.name}, which are the clients: give "
                f"--num_clients {len(values)} (it is {len(what.shares)})."
            )
        partition = skewed_partition(
            *([by_value[value] for value in values], heldout, what.sources, what.shares),
            *(what.client_samples, what.seed, what.scenario),
            notes={"partitioner": self.name, "client_field": column},
        )
        named = [replace(held, notes={"client_value": values[held.client]}) for held in partition.clients]
        return replace(partition, clients=named)
