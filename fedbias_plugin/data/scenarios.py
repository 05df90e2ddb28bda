"""The scenarios: which share of each client's rows is biased (Zhao et al., the data scenarios of their experiments)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedbias_plugin.data.base import Deal, Partitioner, Split
from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.shapes import parse_columns
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import check_range, option, split_list
from fedbias_plugin.registry import build, load, names

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import RowSource

CUSTOM = "custom"
ROLES = {
    "1B2C": (1.0, 0.0, 0.0),
    "2B1C": (1.0, 1.0, 0.0),
    "3B": (1.0, 1.0, 1.0),
    "3C": (0.0, 0.0, 0.0),
}
"""Scenario -> biased shares of three clients, the seed draws which; all others are clean."""
EVERYWHERE = {"mix-1B2C": 1 / 3, "mix-2B1C": 2 / 3}
"""Scenario -> the biased share of every client."""


@dataclass
class Scenario(Split):
    """Clean rows to every client, and biased ones in their place by the scenario's shares; see :func:`deal_rows`."""

    biased_shares: str | None = option(
        None,
        "with --scenario custom: biased share of each client, such as 1,0,0,0.5",
        read_when={"scenario": (CUSTOM,)},
    )
    client_samples: int = option(
        300, "training rows of every client; the most of one where --partitioner is not iid", at_least=1
    )
    heldout_samples: int = option(
        100, "clean rows no client holds, for the held-out loss; fewer when fewer are left", at_least=0
    )
    columns: str | None = option(
        None,
        "columns of your own data: ours=yours, such as instruction=question,output=answer (docs/data.md)",
    )
    clean_dataset: str = option(
        "auto",
        "clean rows: a known name (fedbias data list), a hub name, or a json/jsonl/parquet/csv/tsv file; auto takes "
        "Alpaca-GPT4 if it is on this machine, else the bundled mini data",
    )
    biased_dataset: str = option(
        "auto", "biased rows, likewise; auto takes BiasDPO if it is on this machine, else the bundled mini data"
    )

    partitioner: str = option("iid", "how clean rows are dealt", choices=functools.partial(names, "partitioner"))

    @property
    def custom_shares(self) -> list[float]:
        """``biased_shares`` as numbers in [0, 1]; empty when it is not given."""
        try:
            shares = [float(part) for part in split_list(self.biased_shares or "")]
        except ValueError:
            raise UserError(f"--biased_shares {self.biased_shares!r} must be numbers such as 1,0,0,0.5.") from None
        for share in shares:
            check_range("biased_shares", share, 0, 1)
        return shares

    @property
    def num_clients(self) -> int | None:
        """As many as there are custom shares."""
        return len(self.custom_shares) or None

    def check(self, num_clients: int | None = None) -> None:
        """Custom shares belong to ``custom``, one a client; a scenario of three roles needs three clients."""
        if self.name != CUSTOM and self.biased_shares:
            raise UserError(f"--biased_shares belongs to --scenario custom, not to {self.name!r}.")
        parse_columns(self.columns)
        custom, roles = self.custom_shares, ROLES.get(self.name, ())
        if self.name == CUSTOM and not custom:
            raise UserError("--scenario custom needs --biased_shares, one share per client, such as 1,0,0,0.5.")
        if num_clients is None:
            return
        if custom and len(custom) != num_clients:
            raise UserError(
                f"--biased_shares holds {len(custom)} shares, but --num_clients is {num_clients}; give one per client."
            )
        if num_clients < len(roles):
            raise UserError(
                f"--scenario {self.name} needs at least {len(roles)} clients, but --num_clients is {num_clients}; for "
                f"fewer clients write --scenario custom --biased_shares with one share per client, such as 1,0."
            )

    def shares(self, num_clients: int, seed: int) -> list[float]:
        """The biased share of every client, by client id; each in [0, 1].

        Scenarios with roles need as many clients as roles; further clients are clean, so ``3B`` with ten clients is
        three poisoned clients among ten. ``seed`` permutes which client ids have which role. Custom shares belong to
        the client ids as they are written and are not permuted.

        Raises:
            UserError: too few clients, or custom shares that do not fit the clients.
        """
        self.check(num_clients)
        if self.name == CUSTOM:
            return self.custom_shares
        if self.name in EVERYWHERE:
            return [EVERYWHERE[self.name]] * num_clients
        roles = ROLES[self.name]
        return permuted([*roles, *[0.0] * (num_clients - len(roles))], generator("roles", seed))

    def deal(self, arguments: BiasArguments, num_clients: int, seed: int) -> Partition:
        """The partition that the flags ask for."""
        from fedbias_plugin.data.sources import check_columns_are_found, load_rows

        shares = self.shares(num_clients, seed)
        partitioner: Partitioner = build("partitioner", self.partitioner, arguments)
        fields = load("task", arguments.task).fields(vars(arguments))
        read = {"data_dir": arguments.data_dir, "columns": self.columns, "fields": fields}
        clean, biased = load_rows(self.clean_dataset, "clean", **read), None
        if any(shares) or fields is None:
            biased = load_rows(self.biased_dataset, "biased", **read)
            check_columns_are_found(self.columns, clean, biased)
        rows = self.client_samples, seed, self.heldout_samples
        partition = partitioner.deal(Deal(clean, biased, shares, *rows, self.name))
        label_field = fields[1] if fields else getattr(partitioner, "label_field", None)
        return replace(partition, label_field=label_field)

    def deal_preferences(
        self, source: RowSource, num_clients: int, seed: int, arguments: BiasArguments | None = None
    ) -> Partition:
        """In the biased share of a client's rows, chosen and rejected response are exchanged."""
        from fedbias_plugin.data.dealing import deal_preference_rows, with_flipped

        shares = self.shares(num_clients, seed)
        heldout = 0 if arguments is None else self.heldout_samples
        if arguments is None or self.partitioner == "iid":
            return deal_preference_rows(source, shares, self.client_samples, seed, self.name, heldout)
        partitioner: Partitioner = build("partitioner", self.partitioner, arguments)
        unbiased = [0.0] * num_clients
        dealt = partitioner.deal(Deal(source, None, unbiased, self.client_samples, seed, heldout, self.name))
        clients = with_flipped([dataset.rows for dataset in dealt.clients], shares, seed)
        clients = [replace(one, notes=of.notes) for one, of in zip(clients, dealt.clients, strict=True)]
        label_field = getattr(partitioner, "label_field", None)
        return replace(dealt, clients=clients, sources={"preference": source}, label_field=label_field)
