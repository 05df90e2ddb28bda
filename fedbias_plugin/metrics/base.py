"""The contract of a metric: items in, per-item scores, and one number with what it takes to read it.
Importing the file of a metric imports neither torch nor numpy.
"""

from __future__ import annotations

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.extension import Extension
from fedbias_plugin.known_dataset import KnownDataset
from fedbias_plugin.metrics.formatting import interval, item_note, number, plain, with_interval
from fedbias_plugin.options import check_options
from fedbias_plugin.registry import load

if TYPE_CHECKING:
    from typing_extensions import Self

    from fedbias_plugin.metrics.client_tests import ClientTests
    from fedbias_plugin.metrics.heldout_accuracy import LabelledRows
    from fedbias_plugin.metrics.preference_accuracy import ScoredRows
    from fedbias_plugin.scoring.scorer import SentenceScorer

Block = dict[str, Any]
"""A metric's numbers as records hold them; see :meth:`Metric.block`."""


@dataclass(frozen=True)
class Source:
    """Where a metric finds what it measures on.

    Attributes:
        locate: name of a known kind of data -> its file on this machine, else the bundled one.
        heldout: (prompt, response) of clean rows that no client holds.
        seq_length: tokens of a training row.
        clients: every client's own test rows; None where there are none.
        labelled, preferred: held-out rows of a run that classifies, or of one that trains on preferences, and how they
            are scored; None in others.
    """

    locate: Callable[[str], Path]
    heldout: Sequence[tuple[str, str]] = ()
    seq_length: int = 512
    clients: ClientTests | None = None
    labelled: LabelledRows | None = None
    preferred: ScoredRows | None = None


@dataclass(frozen=True)
class Result:
    """What a metric says of one model; subclasses add their own numbers.

    Attributes:
        value: the number that stands for the metric; None where it could not be measured.
        n: items it is of.
        ci95: its 95% interval, None where there are too few items for one.
        noise_floor: how far from the ideal a model without preference is expected to be on these items, if known.
    """

    value: float | None
    n: int
    ci95: tuple[float, float] | None = None
    noise_floor: float | None = None

    def to_json(self) -> Block:
        """The attributes as plain JSON values; intervals are lists of two numbers."""
        return plain(dataclasses.asdict(self))


@dataclass
class Metric(Extension):
    """Something that is measured of the global model every round, and of every client's update if it can be.

    One that is measured of clients says the ``ids`` of its items: the probe half weighs clients, the report half is the
    headline. ``strata`` and ``units`` say how they are split.

    Attributes:
        title: what its value is called, such as ``CrowS-Pairs score``.
        short: a shorter word for it, for lines of a log; without it the title.
        ideal: its value of a model that is as it should be; None where there is no such value.
        higher_is_better: None where neither direction is better.
        of_clients: whether it is measured of every client's update too, on its probe items.
        in_bias_score: whether ``|value - ideal|`` is a term of b_i (eq. 1 of BAMA).
        main: key of a block that holds what ``value`` holds, under the metric's own word for it.
        digits: decimals that are shown.
        of_parts: keys of a block that its parts (``full``, ``report``, ``probe``) have too.
        of_runs: its flags that only a run reads, and not ``fedbias evaluate``.
        path, sha256: of the file that it measures on; None and empty where there is none.
        datasets: that it measures on, which ``fedbias data`` lists and fetches.
        mini_file: the bundled small one in the place of the first of them, below ``assets/mini``.
        mini_is_invented: whether that is of the invented world; False for a short list of ours in plain English.
        panels: (title, keys of a block, or ``delta``) of a dashboard's panels; each key is a curve. Without them the
            value has one panel.
        section: of a dashboard that its panels stand in, with others of that section; without one among the scores.
        beside: keys of a block that a report's tables show beside the value.
        words: what keys of a block are called, where the key with spaces does not say it.
        by_round: keys of a block that ``compare`` and a report's figures show by round, beside the value.
        every_round: whether it is measured in every round, whatever ``--bias_eval_every`` says.
        n_is_of_items: whether n counts what it measures on; False where it counts what the model wrote of interest.
        of_model: ``global``; ``own`` (each client's, trained alone: :meth:`own_block`); ``beside``: one made by flags.
    """

    title: ClassVar[str] = ""
    short: ClassVar[str] = ""
    ideal: ClassVar[float | None] = None
    higher_is_better: ClassVar[bool | None] = None
    of_clients: ClassVar[bool] = False
    in_bias_score: ClassVar[bool] = False
    main: ClassVar[str] = "value"
    digits: ClassVar[int] = 2
    of_parts: ClassVar[tuple[str, ...]] = ("value", "n", "ci95")
    of_runs: ClassVar[tuple[str, ...]] = ()
    panels: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()
    section: ClassVar[str] = ""
    beside: ClassVar[tuple[str, ...]] = ()
    words: ClassVar[Mapping[str, str]] = {}
    by_round: ClassVar[tuple[str, ...]] = ()
    every_round: ClassVar[bool] = False
    n_is_of_items: ClassVar[bool] = True
    of_model: ClassVar[str] = "global"
    path: ClassVar[Path | None] = None
    sha256: ClassVar[str] = ""
    datasets: ClassVar[tuple[KnownDataset, ...]] = ()
    mini_file: ClassVar[str | None] = None
    mini_is_invented: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "title" in vars(cls):
            cls.short = vars(cls).get("short", cls.title)

    def __post_init__(self) -> None:
        check_options(self)

    def own_block(self, scores: Mapping[int, Any], clients: Sequence[Any], *, seed: int) -> Block:
        """Of ``own`` models: from scores of each client's model on its test rows, and every ``ClientDataset``."""
        raise NotImplementedError

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Raise :class:`UserError` where its flags do not fit the other ``flags``; called before anything is read."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], **flags: Any) -> Self:
        """The metric on one file; errors are those of :meth:`prepare`."""
        made = cls(**flags)
        made.prepare(Source(lambda _: Path(path)))
        return made

    @abstractmethod
    def prepare(self, source: Source) -> None:
        """Read and check what it measures on.

        Raises:
            UserError: it is missing or damaged; file and place are named.
        """

    @property
    @abstractmethod
    def text_count(self) -> int:
        """How many texts a whole measurement reads; 0 where there is nothing to measure on."""

    @property
    def ids(self) -> Sequence[str]:
        """Of the items, in their order."""
        return ()

    @property
    def strata(self) -> Sequence[str]:
        """Of every item: each stratum gives its share of probe items."""
        return ["all"] * len(self.ids)

    @property
    def units(self) -> Sequence[Hashable] | None:
        """Of every item: items of one unit are all probe or all report; None where each is by itself."""
        return None

    @property
    def sentences(self) -> Sequence[Sequence[str]]:
        """The sentences of every item, to say how many both halves share."""
        return [() for _ in self.ids]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Item id and text as the model reads it, of every text: training rows must not hold them."""
        return iter(())

    def unbiased_rows(self) -> list[tuple[str, str]]:
        """Instruction and response of a row for every item, on which a client would learn to look unbiased."""
        return []

    @property
    def probe_fraction(self) -> float:
        """Share of its items that are probe items."""
        return 0.0

    @abstractmethod
    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> Any:
        """Per-item scores of the scorer's model on the items at ``indices``; all without.

        Returns:
            A dataclass of arrays, an entry an item, with ``subset(indices)`` if the metric is of clients; or None where
            no item can be measured. One with ``ids`` is stored with the run, for paired tests; one with ``margins``
            (signed preference of every item, and its group or None) tells a rule which way each item leans.

        Raises:
            UserError: an item cannot be measured.
        """

    @abstractmethod
    def result(self, scores: Any, *, seed: int) -> Any:
        """:class:`Result`, or a class of the metric's own with ``value``, ``n`` and ``to_json``; ``seed`` draws."""

    @classmethod
    def outcomes(cls, scores: Mapping[str, Any]) -> tuple[Any, Any] | None:
        """For paired tests of two models: (value of every item, group of every item or None), from stored arrays.

        The mean over items (over groups, where items of a group agree) is the metric's value; an item that does not
        count is NaN. None: no such test.
        """
        return None

    @classmethod
    def block(cls, result: Any) -> Block:
        """A result as records hold it: ``value``, ``ideal``, ``n``, ``ci95``, ``noise_floor``, and its own keys."""
        blank: Block = {"value": result.value, "ideal": cls.ideal, "ci95": None, "noise_floor": None}
        return blank | result.to_json()

    @classmethod
    def line(cls, block: Block) -> str:
        """One part of a line of a log."""
        shown = with_interval(block["value"], block.get("ci95"), cls.digits)
        return f"{cls.short} {shown} ({item_note(block)})"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """Rows of a table: measure, value, 95% interval, measured on."""
        yield cls.title, number(block["value"], cls.digits), interval(block.get("ci95")), item_note(block)

    @classmethod
    def warnings(cls, of_model: Block | None, of_clients: Mapping[int, Block]) -> Iterator[str]:
        """What a reader of a round's numbers must know, ``head: details``."""
        return iter(())

    @classmethod
    def categories(cls, block: Block) -> Mapping[str, Block]:
        """Category -> its numbers: the value (under ``main``), ``n`` and ``ci95``."""
        return {}

    @classmethod
    def by_client(cls, block: Block) -> Mapping[int, Block]:
        """Client id -> numbers of the global model for that client alone: ``value``, ``n`` and ``ci95``."""
        return {}

    @classmethod
    def possible(cls, part: str) -> tuple[float, float] | None:
        """Between which bounds a number of a block lies, the value for ''; None where nothing is known."""
        return None

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """Lines of ``fedbias evaluate``."""
        yield f"{cls.title:<23}  {with_interval(block['value'], block.get('ci95'), 2):<24}  n={block['n']}"

    @classmethod
    def summary(cls, block: Block) -> Iterator[str]:
        """Lines of ``measure``."""
        return cls.table(block)

    @classmethod
    def legend(cls, block: Block) -> Iterator[str]:
        """Lines that say what :meth:`summary`'s words mean."""
        return iter(())


def delta(block: Mapping[str, Any]) -> float | None:
    """``|value - ideal|``, the paper's unit; None without an ideal."""
    return None if block.get("ideal") is None or block.get("value") is None else abs(block["value"] - block["ideal"])


def metric_class(name: str) -> type[Metric]:
    """The class of a metric by its name; of one that is not installed here, a plain one that shows its value.

    Of a number beside a metric (``gender_perplexity/l1_gap``) a plain one too, with the decimals of its metric.
    """
    whole, _, part = name.partition("/")
    try:
        found: type[Metric] = load("metric", whole)
    except UserError:
        return type("Unknown", (Metric,), {"name": name, "title": name})
    found.name = whole
    if not part:
        return found
    what, head = found.words.get(part, part.replace("_", " ")), found.title.partition(":")[0]
    shown = {"title": f"{head}: {what}", "short": f"{found.short.partition(':')[0]}, {what}", "digits": found.digits}
    return type("Beside", (Metric,), {"name": name, **shown})
