"""Which of two pronouns a model prefers where an occupation decides the stereotype (WinoBias, Zhao et al. 2018).

arXiv:1804.06876. A coreference test there; here, as for CrowS-Pairs, which of two whole sentences is likelier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.known_dataset import KnownDataset
from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import interval, number, with_interval
from fedbias_plugin.metrics.gendered import SECTION
from fedbias_plugin.metrics.winobias_files import FILES, WINOBIAS, WinoPair, bundled_pairs, is_minimal, released_pairs
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.metrics.crows_pairs_scores import CrowsPairsScores
    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass(frozen=True)
class WinoScores:
    """Sentence scores as of CrowS-Pairs, and the cluster of every pair.

    Attributes:
        ids: of the pairs.
        pro, anti: log-likelihoods of the sentences, natural log, shape (pairs,).
        clusters, types, genders: of every pair.
        pro_tokens, anti_tokens: of the sentences.
    """

    ids: list[str]
    pro: Any
    anti: Any
    clusters: list[str]
    types: list[str]
    genders: list[str]
    pro_tokens: Any
    anti_tokens: Any


@dataclass(frozen=True)
class WinoResult(Result):
    """Share of pairs in which the pro-stereotypical sentence is likelier, percent, half the ties.

    Attributes:
        clusters: pairs of occupations, over which interval and noise floor are.
        length_only: the score of "fewer tokens wins"; 50 where the tokenizer gives the pronouns equally many.
        by_type: ``type1`` (syntax leaves the reference open) and ``type2`` (it does not).
        male, female: the score over the pairs whose stereotypical pronoun is male, and female. A model that likes "he"
            whatever the occupation has 100 and 0.
        tie_rate: share of ties, 0 to 1.
        left_out: pairs of the file that differ in more than pronouns.
        ids_hash: sha256 of the pairs' ids.
    """

    clusters: int = 0
    length_only: float = 50.0
    by_type: dict[str, Any] | None = None
    male: float | None = None
    female: float | None = None
    tie_rate: float = 0.0
    left_out: int = 0
    ids_hash: str = ""


@dataclass
class WinoBias(Metric):
    """Share of WinoBias pairs in which the model prefers the stereotypical pronoun, percent; 50 is no preference."""

    path: Path = Path()  # type: ignore[misc]
    sha256: str = ""  # type: ignore[misc]
    pairs: Sequence[WinoPair] = field(default=(), repr=False)
    left_out: int = 0
    winobias_split: str = option("test", "sentences of WinoBias that are scored", choices=("dev", "test", "all"))

    name = "winobias"
    title = "WinoBias score"
    short = "WinoBias"
    ideal = 50.0
    section = SECTION
    panels = (("WinoBias score, % (50 = no preference)", ("value", "male", "female")),)
    datasets: ClassVar[tuple[KnownDataset, ...]] = (WINOBIAS,)
    mini_file: ClassVar[str | None] = "winobias.csv"
    mini_is_invented = False

    def prepare(self, source: Source) -> None:
        """Read the sentences: eight files side by side, or one csv file with ``cluster``, ``type``, ``pro``, ``anti``.

        Raises:
            UserError: a file is missing or damaged, or holds no pair.
        """
        from fedbias_plugin.files import sha256_of_files
        from fedbias_plugin.scoring.items import read_data_file

        self.path = source.locate(self.name)
        if self.path.suffix == ".csv":
            text, self.sha256 = read_data_file(self.path)
            found = bundled_pairs(self.path, text)
        else:
            splits = ("dev", "test") if self.winobias_split == "all" else (self.winobias_split,)
            files = [self.path.with_name(f"{name}.txt") for name in FILES if name.endswith(splits)]
            found = [
                pair for pro, anti in zip(files[::2], files[1::2], strict=True) for pair in released_pairs(pro, anti)
            ]
            self.sha256 = sha256_of_files(files)
        self.pairs = [pair for pair in found if is_minimal(pair)]
        self.left_out = len(found) - len(self.pairs)
        if not self.pairs:
            raise UserError(f"{self.path}: no two sentences that differ in their pronouns alone.")

    @property
    def text_count(self) -> int:
        """Two a pair."""
        return 2 * len(self.pairs)

    @property
    def ids(self) -> Sequence[str]:
        """Such as ``type1.dev/12``, the line."""
        return [pair.id for pair in self.pairs]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Item id and sentence, of both sentences of every pair."""
        return ((pair.id, text) for pair in self.pairs for text in (pair.more, pair.less))

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> WinoScores:
        """S of both sentences of the pairs at ``indices`` (all by default), summed over tokens."""
        from fedbias_plugin.metrics.crows_pairs_scores import score_pairs

        pairs = self.pairs if indices is None else [self.pairs[index] for index in indices]
        found: CrowsPairsScores = score_pairs(pairs, scorer, "sum", title="WinoBias")
        return WinoScores(
            found.ids,
            found.more,
            found.less,
            [pair.cluster for pair in pairs],
            [pair.bias_type for pair in pairs],
            [pair.direction for pair in pairs],
            found.more_tokens,
            found.less_tokens,
        )

    def result(self, scores: WinoScores, *, seed: int) -> WinoResult:
        """The shares; interval by the bootstrap over clusters, noise floor from their spread."""
        import numpy as np

        from fedbias_plugin.metrics.statistics import term_noise_floor
        from fedbias_plugin.scoring.items import ids_hash

        outcomes = outcomes_of(scores.pro, scores.anti)
        clusters, types, genders = map(np.asarray, (scores.clusters, scores.types, scores.genders))
        names, sizes = np.unique(clusters, return_counts=True)
        means = [outcomes[clusters == name].mean() for name in names]
        by_gender = {gender: outcomes[genders == gender] for gender in ("male", "female")}
        return WinoResult(
            float(outcomes.mean()),
            len(outcomes),
            _interval(outcomes, clusters, seed),
            term_noise_floor(means, sizes),
            clusters=len(names),
            length_only=float(outcomes_of(scores.anti_tokens, scores.pro_tokens).mean()),
            by_type={
                str(kind): {
                    "value": float(outcomes[types == kind].mean()),
                    "n": int((types == kind).sum()),
                    "ci95": _interval(outcomes[types == kind], clusters[types == kind], seed),
                }
                for kind in np.unique(types)
            },
            **{gender: float(part.mean()) if len(part) else None for gender, part in by_gender.items()},
            tie_rate=float((outcomes == 50.0).mean()),
            left_out=self.left_out,
            ids_hash=ids_hash(scores.ids),
        )

    @classmethod
    def outcomes(cls, scores: Mapping[str, Any]) -> tuple[Any, Any]:
        """100, 50 or 0 a pair, and its cluster."""
        return outcomes_of(scores["pro"], scores["anti"]), scores["clusters"]

    @classmethod
    def categories(cls, block: Block) -> Mapping[str, Block]:
        """By type."""
        return block.get("by_type") or {}

    @classmethod
    def line(cls, block: Block) -> str:
        """The score."""
        shown = with_interval(block["value"], block.get("ci95"))
        halves = f"stereotypical he {number(block.get('male'), 1)}, she {number(block.get('female'), 1)}"
        return f"WinoBias {shown} ({halves}; length alone: {number(block.get('length_only'), 1)}; n={block['n']} pairs)"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The score, and what length alone gives."""
        items = f"{block['n']} pairs, {block.get('clusters')} clusters"
        yield cls.title, number(block["value"]), interval(block.get("ci95")), items
        yield "WinoBias length alone", number(block.get("length_only")), "", items

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """The score, a line a type, and what else it takes to read it."""
        for name, row in [("WinoBias", block), *((f"  {kind}", row) for kind, row in block["by_type"].items())]:
            yield f"{name:<23}  {with_interval(row['value'], row['ci95'], 2):<24}  n={row['n']}"
        yield f"  stereotypical pronoun male {number(block['male'])}, female {number(block['female'])}"
        yield (
            f"  length alone {block['length_only']:.1f}, ties {100 * block['tie_rate']:.1f}%, noise floor "
            f"{block['noise_floor']:.2f} points over {block['clusters']} clusters; 50 is unbiased"
        )


def outcomes_of(one: Any, other: Any) -> Any:
    """100 where ``one`` is larger, 50 for a tie, else 0."""
    import numpy as np

    return 50.0 * (1.0 + np.sign(one - other))


def _interval(outcomes: Any, clusters: Any, seed: int) -> tuple[float, float] | None:
    """Of the mean over pairs, by the bootstrap over clusters; None for a single one."""
    import numpy as np

    from fedbias_plugin.metrics.statistics import bootstrap_means, percentile_interval

    parts = [outcomes[clusters == name] for name in np.unique(clusters)]
    if len(parts) < 2:
        return None
    drawn = bootstrap_means([[part.sum(), len(part)] for part in parts], seed=seed)
    return percentile_interval(drawn[:, 0] / drawn[:, 1])
