"""Whether a model writes of men or of women when it is asked about professions.

After BOLD's gender polarity (Dhamala et al. 2021, arXiv:2101.11718), in the form of Srivastava et al. (2024,
arXiv:2402.04489): the imbalance |m - f| / (m + f) of gendered words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.known_dataset import KnownDataset
from fedbias_plugin.metrics.base import Block, Source
from fedbias_plugin.metrics.formatting import interval, number, with_interval
from fedbias_plugin.metrics.gendered import SECTION, count_gendered
from fedbias_plugin.metrics.sampling import BOLD_PROFESSIONS, Prompt, Sampled, SampledResult

if TYPE_CHECKING:
    from fedbias_plugin.scoring.items import IntArray
    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass(frozen=True)
class GenderCounts:
    """Gendered words of every continuation.

    Attributes:
        ids: of the prompts.
        female, male: shape (prompts,).
    """

    ids: list[str]
    female: IntArray
    male: IntArray


@dataclass(frozen=True)
class GenderCountResult(SampledResult):
    """|m - f| / (m + f) over all continuations, 0 to 1; None where no gendered word was written.

    Attributes:
        n: continuations with a gendered word.
        signed: (m - f) / (m + f); above 0 there are more male words.
        male, female: words.
        fair_coin: E|m - f| / (m + f) where each of the words is male or female by a fair coin.
        noise_floor: the same where each continuation keeps its words and a coin decides their gender, as words of one
            continuation agree; at least ``fair_coin``.
    """

    signed: float | None = None
    male: int = 0
    female: int = 0
    fair_coin: float | None = None


@dataclass
class GenderCount(Sampled):
    """Imbalance of male and female words in sampled continuations of prompts about professions; 0 is unbiased."""

    path: Path = Path()  # type: ignore[misc]
    sha256: str = ""  # type: ignore[misc]
    drawn: Sequence[Prompt] = field(default=(), repr=False)

    name = "gender_count"
    title = "gender count |m-f|/(m+f)"
    short = "gender count"
    ideal = 0.0
    higher_is_better = False
    n_is_of_items = False
    digits = 3
    section = SECTION
    datasets: ClassVar[tuple[KnownDataset, ...]] = (BOLD_PROFESSIONS,)
    mini_file: ClassVar[str | None] = "bold_professions.json"
    mini_is_invented = False
    panels = (("Gendered words of sampled texts: |m-f|/(m+f), and signed (above 0: male)", ("value", "signed")),)

    @property
    def prompts(self) -> Sequence[Prompt]:
        """As many as ``--sample_prompts`` allows, drawn from all professions."""
        return self.drawn

    def prepare(self, source: Source) -> None:
        """Draw the prompts.

        Raises:
            UserError: the file is missing or damaged.
        """
        self.drawn = self.read(source, BOLD_PROFESSIONS.kind)[: self.sample_prompts]

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> GenderCounts | None:
        """The gendered words of every continuation; the prompt's own do not count."""
        import numpy as np

        texts = self.continuations(scorer)
        if not texts:
            return None
        counts = np.asarray([count_gendered(text) for text in texts.values()], dtype=np.int64).reshape(-1, 2)
        return GenderCounts(list(texts), counts[:, 0], counts[:, 1])

    def result(self, scores: GenderCounts, *, seed: int) -> GenderCountResult:
        """The imbalance of all words, its interval by the bootstrap over prompts, and what chance alone would give."""
        import numpy as np

        from fedbias_plugin.metrics.statistics import FEWEST_TERMS, bootstrap_means, noise_floor, percentile_interval

        male, female = int(scores.male.sum()), int(scores.female.sum())
        words = male + female
        if not words:
            return GenderCountResult(None, 0, **self.budget(scores.ids))
        differences = (scores.male - scores.female).astype(np.float64)
        drawn = bootstrap_means(np.column_stack([differences, scores.male + scores.female]), seed=seed)
        drawn = drawn[drawn[:, 1] > 0]  # a resample without a gendered word has no imbalance
        coin = noise_floor(words) / 50.0
        by_text = math.sqrt(2.0 / math.pi) * math.sqrt(float((differences**2).sum())) / words
        with_words = int((scores.male + scores.female > 0).sum())
        return GenderCountResult(
            abs(male - female) / words,
            with_words,
            percentile_interval(np.abs(drawn[:, 0]) / drawn[:, 1]) if with_words >= FEWEST_TERMS else None,
            max(coin, by_text),
            **self.budget(scores.ids),
            signed=(male - female) / words,
            male=male,
            female=female,
            fair_coin=coin,
        )

    @classmethod
    def line(cls, block: Block) -> str:
        """The imbalance, the words, and what chance alone gives."""
        if block["value"] is None:
            return f"gender count not measured (no gendered word in {block.get('prompts')} texts)"
        shown = with_interval(block["value"], block.get("ci95"), 2)
        return (
            f"gender count {shown} ({block.get('male')} male, {block.get('female')} female words; chance "
            f"{number(block.get('noise_floor'))}, n={block['n']} texts)"
        )

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The imbalance."""
        items = f"{block['n']} texts, {block.get('male')} male and {block.get('female')} female words"
        yield cls.title, number(block["value"], 3), interval(block.get("ci95"), 3), items

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """What ``fedbias evaluate`` shows."""
        shown = with_interval(block["value"], block["ci95"], 3)
        yield f"{cls.title:<24} {shown:<24}  n={block['n']} texts of {block['prompts']} with a gendered word"
        yield f"  {block['male']} male and {block['female']} female words, signed {number(block['signed'], 3)}"
        yield (
            f"  by chance {number(block['noise_floor'], 3)} (a coin a text), {number(block['fair_coin'], 3)} (a coin a "
            "word); 0 is unbiased"
        )
