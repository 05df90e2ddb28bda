"""Whose rows are whose in a patched OpenFedLLM: the scenario's or the host's, and who owns a data set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from fedbias_plugin.data.partition import ClientDataset, Partition
from fedbias_plugin.data.sources import check_columns_are_found, load_rows, rows_of_host
from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.openfedllm.arguments import AllArguments
from fedbias_plugin.hosts.openfedllm.host_rows import instruction_dataset, preference_dataset, strided_shards
from fedbias_plugin.training.schedule import rows_this_round

logger = logging.getLogger(__name__)


class ClientData:
    """The data sets of all clients.

    Args:
        arguments: every flag.
        is_dpo: whether the script trains on preferences.

    Attributes:
        from_scenario: whether the plugin deals the rows; otherwise the host does.
        flips_host_rows: whether it deals the host's own preferences.
        needs_host_rows: whether the host must load its own data set.
        datasets: by client id; ``row_ids``: of the plugin's own rows, likewise.
    """

    def __init__(self, arguments: AllArguments, is_dpo: bool) -> None:
        self.script_args, self.fed_args, self.plugin = arguments.script, arguments.fed, arguments.plugin
        self.is_dpo = is_dpo
        self.from_scenario = self.plugin.scenario != "none"
        self.flips_host_rows = self.from_scenario and is_dpo and self.plugin.preference_dataset == "host"
        self.needs_host_rows = not self.from_scenario or self.flips_host_rows
        self.datasets: list[Any] = []
        self.row_ids: list[list[str]] = []

    def preference_partition(self, host_dataset: Any = None) -> Partition:
        """The preference rows of every client, from ``--preference_dataset`` or from the host's own data set.

        Raises:
            UserError: a missing or damaged file, or too few rows.
        """
        arguments, split = self.plugin, self.plugin.split
        assert split is not None
        if self.flips_host_rows:
            source = rows_of_host(host_dataset, self.script_args.dataset_name)
        else:
            source = load_rows(arguments.preference_dataset, "preference", arguments.data_dir, arguments.columns)
            check_columns_are_found(arguments.columns, source)
        return split.deal_preferences(source, self.fed_args.num_clients, self.script_args.seed)

    def say_plan(self, clients: Sequence[ClientDataset]) -> None:
        """What the scenario deals, and which of the host's own flags it takes the place of."""
        plugin = self.plugin
        if self.from_scenario and not self.needs_host_rows:
            rows = sorted({len(client.rows) for client in clients})
            logger.info(
                "--scenario %s deals every client %s rows; --dataset_name and --dataset_sample are not used.",
                *(plugin.scenario, f"{rows[0]} to {rows[-1]}" if len(rows) > 1 else rows[0]),
            )
        if self.from_scenario:
            shares = {client.client: client.biased_share for client in clients}
            poisoned = [f"client {client} ({100 * share:.0f}%)" for client, share in shares.items() if share]
            logger.info("poisoned of %d clients: %s", len(shares), ", ".join(poisoned) or "none")
        if plugin.local_epochs is not None:
            logger.info("--local_epochs %d takes the place of --max_steps.", plugin.local_epochs)

    def deal(self, clients: Sequence[ClientDataset]) -> list[Any]:
        """The scenario's rows as the host's data sets."""
        self.row_ids = [[row.id for row in client.rows] for client in clients]
        if self.is_dpo:
            template, formatted = self.script_args.template, self.flips_host_rows
            self.datasets = [preference_dataset(client.rows, template, formatted) for client in clients]
        else:
            self.datasets = [instruction_dataset(client.rows) for client in clients]
        return self.datasets

    def split(self, host_split: Callable[..., list[Any]], *args: Any) -> list[Any]:
        """The host's own split, with shards as they were in the versions it was written for."""
        with strided_shards():
            datasets = host_split(*args)
        strategy = getattr(self.fed_args, "split_strategy", "iid")
        advice = f"--split_strategy {strategy!r} is not implemented there. Give --split_strategy iid, or --scenario"
        return self.keep(datasets, advice)

    def keep(self, datasets: list[Any], advice: str) -> list[Any]:
        """Take the data sets that the host made; where there are fewer than clients, refuse them with ``advice``."""
        num_clients = self.fed_args.num_clients
        if len(datasets) < num_clients and not self.fed_args.fed_alg.startswith("local"):
            raise UserError(f"The host made {len(datasets)} data sets for {num_clients} clients; {advice}.")
        self.datasets = datasets
        return datasets

    def client_of(self, dataset: Any, call: int, clients: Sequence[int]) -> int:
        """The client that trains on ``dataset``: the one it was dealt to, else the ``call``-th of this round's."""
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
        host, seed = self.script_args, self.plugin.schedule_seed
        if self.plugin.local_epochs is not None:
            return dataset
        if seed is None:
            return None
        rows = rows_this_round(len(dataset), round_idx, host.batch_size, host.gradient_accumulation_steps, steps, seed)
        return dataset.select(rows)

    def name_row(self, client: int, index: int) -> str:
        """A row as a message names it."""
        return self.row_ids[client][index] if client < len(self.row_ids) else f"row {index} of client {client}"
