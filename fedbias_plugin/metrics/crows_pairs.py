"""CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133): which of two minimally different sentences a model prefers.

The data owners warn that the pairs hold noise and unclear stereotypes (Blodgett et al. 2021); a score near 50 does not
show that a model is free of bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.known_dataset import RAW, STEREOTYPES, Form, KnownDataset
from fedbias_plugin.metrics.base import Block, Metric, Source
from fedbias_plugin.metrics.crows_pairs_files import Pair, read_pairs
from fedbias_plugin.metrics.formatting import interval, item_note, number, with_interval
from fedbias_plugin.metrics.probe import units_by_sentence
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.metrics.crows_pairs_scores import CrowsPairsResult, CrowsPairsScores
    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass
class CrowsPairs(Metric):
    """Share of pairs in which the more stereotypical sentence is more likely, percent.

    Attributes:
        path, sha256: of the file.
        pairs: in file order.
    """

    path: Path = Path()  # type: ignore[misc]
    sha256: str = ""  # type: ignore[misc]
    pairs: Sequence[Pair] = field(default=(), repr=False)
    crows_reduction: str = option(
        "sum",
        "sentence score of CrowS-Pairs; matched is sum over the pairs of equal token count",
        choices=("sum", "mean", "shared", "matched"),
    )
    bama_crows_fraction: float = option(
        0.25, "share of CrowS-Pairs used as probe items for the weights", at_least=0, at_most=1
    )

    name = "crows_pairs"
    title = "CrowS-Pairs score"
    short = "CrowS"
    main = "score"
    ideal = 50.0
    of_clients = True
    in_bias_score = True
    of_parts = ("value", "score", "n", "ci95", "tie_rate", "length_only")
    of_runs = ("bama_crows_fraction",)
    panels = (
        ("CrowS-Pairs score, % (50 = no preference)", ("value",)),
        ("Delta CrowS = |score - 50|", ("delta",)),
    )
    datasets: ClassVar[tuple[KnownDataset, ...]] = (
        KnownDataset(
            name="crows_pairs",
            kind="crows_pairs",
            title="CrowS-Pairs",
            licence="CC BY-SA 4.0",
            home="nyu-mll/crows-pairs",
            warning=STEREOTYPES + " For evaluation only. Its owners warn, after Blodgett et al. (2021), that its pairs "
            "are noisy and unreliable enough that it may not be a good indicator of social bias in language models.",
            forms=(
                Form.of(
                    "crows_pairs/crows_pairs_anonymized.csv",
                    sha256=("dfb36986ce0502abbaf7055b9176da3d08d48e07df1251991b5dfbcbceab9d0c",),
                    git_blob=("28fa7d906a83d441001fb2a0eeae28c6d64a99e1",),
                    rows=1_508,
                    url=f"{RAW}/nyu-mll/crows-pairs/8aaac11c485473159ec9328a65253a5be9a479dc/"
                    "data/crows_pairs_anonymized.csv",
                ),
            ),
        ),
    )
    mini_file: ClassVar[str | None] = "crows_pairs.csv"

    def prepare(self, source: Source) -> None:
        """Read a csv file with the columns of the original release, by name; further columns are ignored.

        Raises:
            UserError: the file cannot be read or is empty; a column is missing; a row is damaged, has an empty
                sentence, or a ``stereo_antistereo`` other than these two words. File and line are named.
        """
        from fedbias_plugin.scoring.items import read_data_file

        self.path = source.locate(self.name)
        text, self.sha256 = read_data_file(self.path)
        self.pairs = read_pairs(self.path, text)
        if not self.pairs:
            raise UserError(f"{self.path}: no rows below the header.")

    @property
    def reduction(self) -> str:
        """How token scores become sentence scores."""
        return self.crows_reduction

    @property
    def probe_fraction(self) -> float:
        """Share of the pairs that are probe items."""
        return self.bama_crows_fraction

    @property
    def text_count(self) -> int:
        """Two a pair."""
        return 2 * len(self.pairs)

    @cached_property
    def ids(self) -> list[str]:
        """Of the pairs: the unnamed first column or ``id``, else the row number from 0."""
        return [pair.id for pair in self.pairs]

    @cached_property
    def strata(self) -> list[str]:
        """Bias type of every pair, for the probe/report split."""
        return [pair.bias_type for pair in self.pairs]

    @cached_property
    def sentences(self) -> list[tuple[str, ...]]:
        """The two of every pair."""
        return [(pair.more, pair.less) for pair in self.pairs]

    @cached_property
    def units(self) -> list[int]:
        """What the split keeps whole: pairs that share a sentence are of one unit."""
        return units_by_sentence(self.sentences)

    def texts(self) -> Iterator[tuple[str, str]]:
        """Item id and sentence, of both sentences of every pair."""
        return ((pair.id, text) for pair in self.pairs for text in (pair.more, pair.less))

    def unbiased_rows(self) -> list[tuple[str, str]]:
        """Instruction and response with the less stereotypical sentence of every pair, in their order."""
        return [("Write a sentence.", pair.less) for pair in self.pairs]

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> CrowsPairsScores:
        """S(more) and S(less) of the pairs at ``indices`` (all by default), see ``--crows_reduction``.

        ``sum`` adds the log-probabilities of all tokens, ``mean`` divides by their number, ``shared`` adds those of the
        tokens that both sentences have (longest matching blocks of token ids, as the original metric aligns them). Each
        shared token is conditioned on the words before it in its own sentence, which a masked LM would also see after.
        ``matched`` is ``sum``; its result is of the pairs alone whose sentences have equally many tokens.

        Raises:
            UserError: a pair that cannot be scored (named by its id).
        """
        from fedbias_plugin.metrics.crows_pairs_scores import score_pairs

        pairs = self.pairs if indices is None else [self.pairs[index] for index in indices]
        return score_pairs(pairs, scorer, self.reduction)

    def result(self, scores: CrowsPairsScores, *, seed: int) -> CrowsPairsResult:
        """All the numbers of docs/metrics.md, for these scores; ``seed`` is that of the bootstrap.

        Raises:
            UserError: ``scores`` is empty, or under ``matched`` no pair has equal token counts.
        """
        from fedbias_plugin.metrics.crows_pairs_scores import result_of

        return result_of(scores, seed)

    @classmethod
    def outcomes(cls, scores: Mapping[str, Any]) -> tuple[Any, None]:
        """100, 50 or 0 a pair; NaN for one that ``matched`` leaves out."""
        from fedbias_plugin.metrics.crows_pairs_scores import stored_outcomes

        return stored_outcomes(scores), None

    @classmethod
    def line(cls, block: Block) -> str:
        """The score, and what length alone gives."""
        notes = "; ".join(filter(None, [length_note(block), item_note(block)]))
        return f"CrowS {with_interval(block['score'], block.get('ci95'))} ({notes})"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The score, and what length alone gives."""
        yield "CrowS-Pairs score", number(block["score"]), interval(block.get("ci95")), item_note(block)
        if block.get("length_only") is not None:
            yield "CrowS length alone", number(block["length_only"]), "", item_note(block)

    @classmethod
    def categories(cls, block: Block) -> Mapping[str, Block]:
        """By bias type."""
        return block.get("by_type") or {}

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """A line a bias type."""
        title = f"CrowS-Pairs ({block['reduction']})"
        yield f"{title:<23}  {'score':<24}  {'n':>6}  length alone"
        for name, row in [("all", block), *block["by_type"].items()]:
            score = with_interval(row["score"], row["ci95"], 2)
            yield f"  {name:<21}  {score:<24}  {row['n']:>6}  {number(row.get('length_only'), 1):>12}"
        yield f"  ties {100 * block['tie_rate']:.1f}%, noise floor {block['noise_floor']:.2f} points"
        yield (
            "  length alone: the score of 'fewer tokens wins'; by sums a model that knows nothing stands there, not at "
            "50"
        )

    @classmethod
    def summary(cls, block: Block) -> Iterator[str]:
        """One line."""
        score = with_interval(block["score"], block["ci95"])
        yield f"CrowS-Pairs ({block['reduction']})  score {score}  {length_note(block)}, n={block['n']} pairs"

    @classmethod
    def legend(cls, block: Block) -> Iterator[str]:
        """What length alone is."""
        if block["reduction"] != "matched":
            yield "length alone: the score of 'fewer tokens wins', where a model that knows nothing stands under sum"


def length_note(block: Mapping[str, Any]) -> str:
    """What "fewer tokens wins" scores on the same pairs: ``length alone: 42.7``; nothing for older records."""
    if block.get("reduction") == "matched":
        return "pairs of equal length"
    value = block.get("length_only")
    return "" if value is None else f"length alone: {number(value, 1)}"
