"""Benchmark items and test rows inside training rows: scores on them tell what a model remembers.

As GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C) and lm-evaluation-harness's decontamination do, two texts
overlap when they share 13 words in a row, lower-cased and without punctuation; a shorter sentence must occur whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.metrics.base import Metric

Words = tuple[str, ...]

NGRAM_WORDS = 13
FEWEST_WORDS = 4
"""Shorter sentences are not looked for: anybody writes them."""
WORD = re.compile(r"\w+(?:'\w+)*")


@dataclass
class Overlap:
    """The items of one benchmark that occur in training rows.

    Attributes:
        items: ids.
        clients: that hold such a row.
        sources: names of the data sets of those rows.
    """

    items: set[str] = field(default_factory=set)
    clients: set[int] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)


def overlap_warnings(partition: Partition | None, benchmarks: Mapping[str, Metric]) -> list[str]:
    """One sentence for every benchmark of which items occur in the rows that clients train on.

    Args:
        partition: every client's rows; None, for a host's own rows, gives no warnings.
        benchmarks: name -> loaded benchmark.
    """
    if partition is None:
        return []
    warnings = []
    for name, found in find_overlaps(partition, benchmarks).items():
        items, total = len(found.items), len(benchmarks[name].ids)
        clients = ", ".join(map(str, sorted(found.clients)))
        warnings.append(
            f"{name} in the training rows: {items:,} of its {total:,} items ({100 * items / total:.1f}%), such as "
            f"{min(found.items)}, occur in rows of client(s) {clients} from {', '.join(sorted(found.sources))} "
            f"({NGRAM_WORDS} words in a row, or a whole shorter sentence). Scores on them tell what the model "
            "remembers: take those rows out."
        )
    return warnings


def row_overlap_warnings(partition: Partition | None, *, by_label: bool) -> list[str]:
    """A sentence where a held-out row, or a test row of a client, is a row that some client trains on.

    Equal rows of one data set are dropped where it is read; two data sets, or a split of another package, may share
    some.

    Args:
        partition: every client's rows; None, for a host's own rows, gives none.
        by_label: whether rows are classified: equal texts are one row then, whatever their labels. Without it rows are
            equal whose instruction and response are.
    """
    if partition is None:
        return []

    def key(row: Row) -> str | tuple[str, str]:
        return row.instruction if by_label else (row.instruction, row.response)

    trained = {key(row): row.id for dataset in partition.clients for row in dataset.rows}
    tested = [row for dataset in partition.clients for row in dataset.test]
    parts = [("held-out rows", partition.heldout), ("test rows of clients", tested)]
    counts = [(what, len(rows), [row for row in rows if key(row) in trained]) for what, rows in parts]
    shared = [f"{len(twice):,} of the {total:,} {what}" for what, total, twice in counts if twice]
    if not shared:
        return []
    one = next(row for _, _, twice in counts for row in twice)
    return [
        f"tested on training rows: {' and '.join(shared)} have the {'text' if by_label else 'texts'} of a row that a "
        f"client trains on, such as {one.id} and {trained[key(one)]}. What is measured on them tells what the model "
        "remembers: take them out of one of the data sets."
    ]


def find_overlaps(partition: Partition, benchmarks: Mapping[str, Metric]) -> dict[str, Overlap]:
    """Benchmark name -> what was found of it; benchmarks without overlap are left out."""
    index = _index(benchmarks)
    found: dict[str, Overlap] = {}
    for dataset in partition.clients:
        for row in dataset.rows:
            for name, item in _items_in(row, index):
                overlap = found.setdefault(name, Overlap())
                overlap.items.add(item)
                overlap.clients.add(dataset.client)
                overlap.sources.add(row.source)
    return found


def _index(benchmarks: Mapping[str, Metric]) -> dict[Words, dict[Words, set[tuple[str, str]]]]:
    """First four words -> n-gram -> the (benchmark, item id) that hold it."""
    index: dict[Words, dict[Words, set[tuple[str, str]]]] = {}
    for name, benchmark in benchmarks.items():
        for item, text in benchmark.texts():
            words = _words(text)
            size = min(NGRAM_WORDS, len(words))
            for start in range(len(words) - size + 1) if size >= FEWEST_WORDS else ():
                ngram = words[start : start + size]
                index.setdefault(ngram[:FEWEST_WORDS], {}).setdefault(ngram, set()).add((name, item))
    return index


def _items_in(row: Row, index: Mapping[Words, Mapping[Words, set[tuple[str, str]]]]) -> Iterator[tuple[str, str]]:
    """The (benchmark, item id) that the row's texts hold, some more than once."""
    for text in (row.instruction, row.response, row.rejected or ""):
        words = _words(text)
        if index.keys().isdisjoint(_fours(words)):
            continue  # almost every row: this line decides the speed
        starts = [start for start, four in enumerate(_fours(words)) if four in index]
        for start in starts:
            for ngram, items in index[words[start : start + FEWEST_WORDS]].items():
                if words[start : start + len(ngram)] == ngram:
                    yield from items


def _fours(words: Words) -> Iterator[Words]:
    """Every four words in a row."""
    return zip(words, words[1:], words[2:], words[3:], strict=False)


def _words(text: str) -> Words:
    return tuple(WORD.findall(text.lower().replace("’", "'")))
