"""A baseline of classification: every client alone, without the others' updates, on its own test rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.rows import usual_response
from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Block
from fedbias_plugin.metrics.client_loss import ClientAccuracy
from fedbias_plugin.metrics.formatting import number
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import ClientDataset


@dataclass
class LocalOnly(ClientAccuracy):
    """Accuracy of each client's own model, trained alone for as many steps, on its own test rows; at the end of a run.

    Not measured by itself: :func:`fedbias_plugin.federation.local_only.local_only` trains the models.
    """

    local_baseline: bool = option(
        False,
        "with --task classify and --client_test_fraction: at the end train every client alone too, from the same start "
        "and for as many steps, and measure its model on its own test rows; about as long as the run itself",
    )

    name = "local_only"
    title = "local only"
    every_round = False
    of_model = "own"
    panels = (("Accuracy of clients trained alone: mean, worst", ("value", "worst")),)

    @property
    def is_on(self) -> bool:
        """By its flag."""
        return self.local_baseline

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """It needs labels and test rows."""
        if flags["task"] != "classify" or not self.client_test_fraction:
            raise UserError(
                "--local_baseline is an accuracy on clients' own test rows: it belongs to --task classify and "
                "--client_test_fraction 0.2."
            )
        if flags.get("exact_lora") == "fold":
            raise UserError(
                "--local_baseline starts from the run's first weights, which --exact_lora fold changes: give "
                "--exact_lora truncate, or drop one."
            )

    @property
    def text_count(self) -> int:
        """None: what it is of is not the run's model."""
        return 0

    def own_block(self, scores: Mapping[int, Any], clients: Sequence[ClientDataset], *, seed: int) -> Block:
        """As of the global model, with ``majority``: the mean accuracy of each client's own majority label."""
        shares = majority_shares(clients)
        return self.block(self.result(scores, seed=seed)) | {"majority": sum(shares.values()) / len(shares)}

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """As of the global model, and what needs no training."""
        yield from super().rows(block)
        yield "own majority label, mean", number(block.get("majority"), cls.digits), "", "own rows, no model"


def majority_shares(datasets: Iterable[ClientDataset]) -> dict[int, float]:
    """Client id -> accuracy on its test rows of always saying the most frequent label of its training rows."""
    found = {}
    for dataset in datasets:
        usual = usual_response(dataset.rows)
        found[dataset.client] = sum(row.response == usual for row in dataset.test) / len(dataset.test)
    return found
