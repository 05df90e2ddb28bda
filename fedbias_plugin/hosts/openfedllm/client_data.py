"""Whose rows are whose in a patched OpenFedLLM: the scenario's or the host's, and who owns a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.host_rows import instruction_dataset, preference_dataset, strided_shards
from fedbias_plugin.poisoning.loaders import ClientDataset, Partition
from fedbias_plugin.poisoning.preferences import partition_preferences, rows_of_host
from fedbias_plugin.poisoning.scenarios import biased_shares
from fedbias_plugin.poisoning.sources import load_rows
from fedbias_plugin.training.schedule import rows_this_round

FROM_HOST = "host"


class ClientData:
    """The data sets of all clients.

    Args:
        arguments: every flag.
        is_dpo: whether the script trains on preferences.
    """

    def __init__(self, arguments: AllArguments, is_dpo: bool) -> None:
        self.script_args, self.fed_args, self.plugin = arguments.script, arguments.fed, arguments.plugin
        self.is_dpo = is_dpo
        self.datasets: list[Any] = []
        self.row_ids: list[list[str]] = []

    @property
    def from_scenario(self) -> bool:
        """Whether the plugin deals the rows; otherwise the host does."""
        return self.plugin.scenario != "none"

    @property
    def needs_host_rows(self) -> bool:
        """Whether the host must load its own data set."""
        return not self.from_scenario or (self.is_dpo and self.plugin.preference_dataset == FROM_HOST)

    def preference_partition(self, host_dataset: Any = None) -> Partition:
        """The preference rows of every client, from ``--preference_dataset`` or from the host's own data set.

        Raises:
            UserError: a missing or damaged file, or too few rows.
        """
        arguments, seed = self.plugin, self.script_args.seed
        num_clients = self.fed_args.num_clients
        shares = biased_shares(arguments.scenario, num_clients, seed, arguments.custom_shares)
        if arguments.preference_dataset == FROM_HOST:
            source = rows_of_host(host_dataset, self.script_args.dataset_name)
        else:
            source = load_rows(arguments.preference_dataset, "preference", arguments.data_dir)
        return partition_preferences(source, shares, arguments.client_samples, seed, arguments.scenario)

    def deal(self, clients: Sequence[ClientDataset]) -> list[Any]:
        """The scenario's rows as the host's data sets, by client id."""
        self.row_ids = [[row.id for row in client.rows] for client in clients]
        if self.is_dpo:
            formatted = self.plugin.preference_dataset == FROM_HOST
            template = self.script_args.template
            self.datasets = [preference_dataset(client.rows, template, formatted) for client in clients]
        else:
            self.datasets = [instruction_dataset(client.rows) for client in clients]
        return self.datasets

    def split(self, host_split: Callable[..., list[Any]], *args: Any, **kwargs: Any) -> list[Any]:
        """The host's own split, with shards as they were in the versions it was written for.

        Raises:
            UserError: the host's split made fewer data sets than there are clients.
        """
        with strided_shards():
            datasets = host_split(*args, **kwargs)
        strategy = getattr(self.fed_args, "split_strategy", "iid")
        return self.keep(
            datasets,
            f"--split_strategy {strategy!r} is not implemented there. Give --split_strategy iid, or --scenario",
        )

    def keep(self, datasets: list[Any], advice: str) -> list[Any]:
        """Remember the data sets the host made, to know a client by its data set.

        Raises:
            UserError: there are fewer than clients; the message ends with ``advice``.
        """
        num_clients = self.fed_args.num_clients
        if len(datasets) < num_clients and not self.fed_args.fed_alg.startswith("local"):
            raise UserError(f"The host made {len(datasets)} data sets for {num_clients} clients; {advice}.")
        self.datasets = datasets
        return datasets

    def client_of(self, dataset: Any, call: int, clients: Sequence[int]) -> int:
        """The client that trains on ``dataset``: the one it was dealt to, else the ``call``-th of this round's.

        Raises:
            UserError: under a scenario, rows that the scenario did not deal.
        """
        owners = [client for client, owned in enumerate(self.datasets) if owned is dataset]
        if len(owners) == 1:
            return owners[0]
        if self.from_scenario and not owners:
            raise UserError(
                f"This host trains on rows that --scenario {self.plugin.scenario} did not deal: it reads its data "
                "in a way the plugin does not know. Give --scenario none."
            )
        return clients[call % len(clients)]

    def rows_of_round(self, dataset: Any, round_idx: int, steps: int) -> Any | None:
        """What ``--local_epochs`` or ``--schedule_seed`` take from ``dataset``; None where the host draws itself."""
        arguments, host = self.plugin, self.script_args
        if arguments.local_epochs is not None:
            return dataset
        if arguments.schedule_seed is None:
            return None
        seed = arguments.schedule_seed
        rows = rows_this_round(len(dataset), round_idx, host.batch_size, host.gradient_accumulation_steps, steps, seed)
        return dataset.select(rows)

    def name_row(self, client: int, index: int) -> str:
        """A row as a message names it."""
        if client < len(self.row_ids):
            return self.row_ids[client][index]
        return f"row {index} of client {client}"
