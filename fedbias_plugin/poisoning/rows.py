"""One training row and the set of rows a data set gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One instruction and the response a client is trained on.

    A row of a preference set (DPO) has a ``rejected`` response too; ``response`` is the one to be preferred, and
    ``biased`` says that the two were exchanged.

    ``id`` is ``<source>:<index>``, the index counted from 0 over the rows of the source's files before any row is
    dropped, so that an id keeps its meaning when the clean-up rules change.
    """

    id: str
    instruction: str
    response: str
    biased: bool
    source: str
    rejected: str | None = None


@dataclass(frozen=True)
class RowSource:
    """All usable rows of one data set, in file order, without empty rows and without exact duplicates.

    ``sha256`` is the hash of the file (of the list of hashes for several files, of the rows for a hub data set);
    ``origin`` says where the data set was found, see :data:`fedbias_plugin.poisoning.catalog.ORIGINS`.
    """

    name: str
    rows: list[Row]
    paths: tuple[Path, ...]
    sha256: str
    origin: str
    duplicates: int = 0
    empty: int = 0

    @property
    def path(self) -> Path | None:
        """The (first) file read; None for rows that came from the hub."""
        return self.paths[0] if self.paths else None
