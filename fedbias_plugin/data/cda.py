"""Counterfactual data augmentation: rows again with the gender of their words swapped (docs/cda.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.data.base import Transform
from fedbias_plugin.data.draws import generator, permuted
from fedbias_plugin.data.gender_swap import Swapper
from fedbias_plugin.data.gender_words import GenderWords, gender_words
from fedbias_plugin.data.rows import Chat, Row, RowSource
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import ClientDataset, Partition
    from fedbias_plugin.metrics.base import Metric

MODES = ("append", "substitute")


@dataclass
class Cda(Transform):
    """A share of every client's eligible rows, those with a listed gendered word, is swapped."""

    cda_ratio: float = option(
        0.0,
        "counterfactual data augmentation: share of a client's rows with a gendered word that are swapped, in [0, 1]",
        at_least=0,
        at_most=1,
    )
    cda_mode: str = option(
        "append",
        "whether a swapped copy joins its row or takes its place",
        choices=MODES,
        unread_when={"cda_ratio": (0,)},
    )
    cda_words: str = option(
        "auto",
        "words to swap: own (a list in the package), a text file with a pair a line, or auto: the published lists "
        "where a data folder has them, else own (docs/cda.md)",
        unread_when={"cda_ratio": (0,)},
    )

    cda_dp_unit: str = option(
        "pair",
        "what differential privacy hides: a row and its copy together, clipped as one, or each as a row",
        choices=("pair", "row"),
        read_with=("dp_epsilon", "dp_noise_multiplier"),
        unread_when={"cda_ratio": (0,), "dp_unit": ("client",)},
    )

    def __post_init__(self) -> None:
        """Nothing is read yet."""
        self._words: GenderWords | None = None
        self._without: list[int] = []

    @property
    def is_on(self) -> bool:
        """Whether any row is to be swapped."""
        return self.cda_ratio > 0

    @property
    def warnings(self) -> list[str]:
        """Clients that stay as they are."""
        listed = ", ".join(map(str, self._without))
        return [f"cda: no row of client(s) {listed} has a gendered word; they train on what they had"] if listed else []

    def read(self, data_dir: str | None) -> None:
        """The list of words."""
        self._words = gender_words(self.cda_words, data_dir)

    def apply(self, partition: Partition, benchmarks: Mapping[str, Metric], seed: int) -> Partition:
        """The partition with swapped copies: appended in the order of their rows, or in their places.

        Which eligible rows are taken is drawn by the seed and the client's id; with a larger share they are the same
        and some more. Copies have the source ``SOURCE (cda)``. The share of biased rows asked for stays what it was.
        """
        words = self._words or gender_words(self.cda_words)
        swapper = Swapper(words.swaps)
        clients, copies = [], []
        for dataset in partition.clients:
            eligible = [index for index, row in enumerate(dataset.rows) if any(map(swapper.has_word, texts_of(row)))]
            order = permuted(eligible, generator(f"cda of client {dataset.client}", seed))
            taken = order[: round(self.cda_ratio * len(eligible))]
            made = {index: self._copy(dataset.rows[index], swapper) for index in taken}
            notes = {**dataset.notes, "cda_eligible": len(eligible), "cda_copies": len(made)}
            clients.append(dataclasses.replace(self._with(dataset, made), notes=notes))
            copies += [made[index] for index in sorted(made)]
        self._without = [dataset.client for dataset in clients if not dataset.notes["cda_eligible"]]
        listed = RowSource(words.title, copies, words.paths, words.sha256, words.origin)
        return dataclasses.replace(partition, clients=clients, sources={**partition.sources, "cda": listed})

    def _copy(self, row: Row, swapper: Swapper) -> Row:
        copy = counterfactual(row, swapper)
        return copy if self.cda_dp_unit == "pair" else dataclasses.replace(copy, unit=row.unit)

    def _with(self, dataset: ClientDataset, made: Mapping[int, Row]) -> ClientDataset:
        if self.cda_mode == "append":
            return dataclasses.replace(dataset, rows=(*dataset.rows, *(made[index] for index in sorted(made))))
        return dataclasses.replace(dataset, rows=tuple(made.get(index, row) for index, row in enumerate(dataset.rows)))


def counterfactual(row: Row, swapper: Swapper) -> Row:
    """``row`` with every text swapped, the rejected response of a preference and the turns of a chat too."""
    instruction = swapper.swapped(row.instruction)
    if isinstance(row.instruction, Chat):
        instruction = Chat(instruction, [(role, swapper.swapped(text)) for role, text in row.instruction.turns])
    return dataclasses.replace(
        row,
        id=f"{row.id}:cda",
        instruction=instruction,
        response=swapper.swapped(row.response),
        rejected=None if row.rejected is None else swapper.swapped(row.rejected),
        source=f"{row.source} (cda)",
        unit=row.unit or row.id,
    )


def texts_of(row: Row) -> list[str]:
    """The texts of a row that a client trains on."""
    return [row.instruction, row.response, *([] if row.rejected is None else [row.rejected])]
