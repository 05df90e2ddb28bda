"""How well a model knows texts about women and about men, and what clipping of gradients takes from each.

After Srivastava et al. (2024, arXiv:2402.04489): differential privacy clips large gradients, and whose texts have those
is measured here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.errors import UserError
from fedbias_plugin.known_dataset import RAW, Form, KnownDataset
from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import interval, number, with_interval
from fedbias_plugin.metrics.gendered import SECTION, read_groups
from fedbias_plugin.metrics.gradient_norms import NORMS, gradient_norms, norm_gaps
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.scoring.items import FloatArray, IntArray
    from fedbias_plugin.scoring.scorer import SentenceScorer

FEMALE = frozenset(["she", "her", "hers", "herself", "woman", "women", "girl", "mother", "daughter", "wife"])
MALE = frozenset(["he", "him", "his", "himself", "man", "men", "boy", "father", "son", "husband"])
FEWEST_WORDS = 11


@dataclass(frozen=True)
class GroupScores:
    """Of every text.

    Attributes:
        ids: the line of each.
        is_female: shape (texts,); the others are about men.
        nll: negative log-likelihood, nats.
        tokens: of the text.
        gradient_is_female, l1, l2: of the texts whose gradient was taken.
    """

    ids: list[str]
    is_female: Any
    nll: FloatArray
    tokens: IntArray
    gradient_is_female: Any
    l1: FloatArray
    l2: FloatArray


@dataclass(frozen=True)
class GroupResult(Result):
    """Log-perplexity of the texts about women minus that of those about men, nats a token.

    Attributes:
        n_female, n_male: texts; ``left_out`` were too long for the model.
        perplexity_female, perplexity_male: exp(total negative log-likelihood / tokens); None beyond every float.
        gradient_texts: of each group, whose gradients were taken; without any, what follows is None.
        clip: C of ``--gender_clip``.
        l1_female, l1_male, l2_female, l2_male: mean norm of a text's gradient; ``_gap`` is female minus male, with
            ``_gap_ci95``.
        clipped_female, clipped_male, clipped_gap: share of texts whose L2 norm is above C.
        kept_female, kept_male, kept_gap: mean of min(1, C / L2 norm): what clipping leaves of a gradient.
        ids_hash: sha256 of the lines.
    """

    n_female: int = 0
    n_male: int = 0
    left_out: int = 0
    perplexity_female: float | None = None
    perplexity_male: float | None = None
    gradient_texts: int = 0
    clip: float = 0.0
    norms: dict[str, Any] = field(default_factory=dict)
    ids_hash: str = ""

    def to_json(self) -> Block:
        """The norms stand beside the rest."""
        found = super().to_json()
        norms: Block = found.pop("norms")
        return found | norms


@dataclass
class GenderPerplexity(Metric):
    """Log-perplexity of texts about women minus that of texts about men, nats a token, and their gradients."""

    path: Path = Path()  # type: ignore[misc]
    sha256: str = ""  # type: ignore[misc]
    lines: Sequence[tuple[str, str, bool]] = field(default=(), repr=False)
    left_out: int = 0
    gender_texts: str | None = option(
        None, "CSV file with the columns group (female, male; or minority, majority) and text for gender_perplexity"
    )
    gender_gradient_texts: int = option(
        16, "texts of each gender whose gradients gender_perplexity takes; 0 takes none", at_least=0
    )
    gender_clip: float = option(
        0.1, "L2 norm at which gender_perplexity would clip a text's gradient, as --dp_max_grad_norm does", above=0
    )

    name = "gender_perplexity"
    title = "gender perplexity, nats"
    short = "gender perplexity"
    ideal = 0.0
    digits = 3
    section = SECTION
    datasets: ClassVar[tuple[KnownDataset, ...]] = (
        KnownDataset(
            name="wikitext2",
            kind="wikitext2",
            title="WikiText-2, validation",
            licence="CC BY-SA 3.0",
            home="pytorch/examples",
            forms=(
                Form.of(
                    "wikitext2/valid.txt",
                    sha256=("f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",),
                    git_blob=("eec944eb2d9e46061cd34a6913528797db6842fc",),
                    rows=3_760,
                    url=f"{RAW}/pytorch/examples/37ce9402ff0cae48d764d7788810fd2ed8238b25/"
                    "word_language_model/data/wikitext-2/valid.txt",
                ),
            ),
        ),
    )
    mini_file: ClassVar[str | None] = "gender_texts.csv"
    mini_is_invented = False
    panels = (
        ("Log-perplexity of texts about women minus men, nats a token", ("value",)),
        ("L2 norm of a text's gradient", ("l2_female", "l2_male")),
        ("Share of a text's gradient that clipping keeps", ("kept_female", "kept_male")),
    )

    def prepare(self, source: Source) -> None:
        """Read the lines of more than ten words that are about one gender, or those of ``--gender_texts``.

        Headings are left out.

        Raises:
            UserError: the file is missing or damaged, or a gender has no line.
        """
        from fedbias_plugin.scoring.items import read_data_file

        self.path = Path(self.gender_texts).expanduser() if self.gender_texts else source.locate("wikitext2")
        text, self.sha256 = read_data_file(self.path)
        if self.gender_texts:
            self.lines = read_groups(self.path, text)
            return
        lines = text.split("\n")
        if self.path.suffix == ".csv":
            lines = [row.get("text") or "" for row in csv.DictReader(io.StringIO(text, newline=""))]
        groups = ((number, line.strip(), gender_of(line)) for number, line in enumerate(lines, 1))
        self.lines = [(str(number), line, group == "female") for number, line, group in groups if group]
        if len({is_female for _, _, is_female in self.lines}) < 2:
            raise UserError(f"{self.path}: there must be lines about women and lines about men.")

    @property
    def text_count(self) -> int:
        """One a line."""
        return len(self.lines)

    @property
    def ids(self) -> Sequence[str]:
        """Numbers of the lines."""
        return [name for name, _, _ in self.lines]

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> GroupScores | None:
        """Negative log-likelihood of every line that the model has positions for, and some lines' gradients."""
        import numpy as np

        from fedbias_plugin.data.draws import generator, permuted
        from fedbias_plugin.scoring.items import ScoreRequest

        lines = self.lines if indices is None else [self.lines[index] for index in indices]
        most = (scorer.longest or 10**9) - 1
        fitting = [one for one in lines if len(scorer.tokenizer(one[1], add_special_tokens=False)["input_ids"]) <= most]
        self.left_out = len(lines) - len(fitting)
        if len({is_female for _, _, is_female in fitting}) < 2:
            return None
        scores = scorer.score([ScoreRequest(line) for _, line, _ in fitting], lambda index: f"line {fitting[index][0]}")
        drawn = permuted(fitting, generator("gradients of texts", 0))
        groups = [[line for line in drawn if line[2] is group] for group in (True, False)]
        each = min(self.gender_gradient_texts, *map(len, groups))
        some = [line for group in groups for line in group[:each]]
        l1, l2 = gradient_norms(scorer, [line for _, line, _ in some]) if some else (np.zeros(0), np.zeros(0))
        return GroupScores(
            [name for name, _, _ in fitting],
            np.asarray([is_female for _, _, is_female in fitting]),
            np.asarray([-score.reduced("sum") for score in scores]),
            np.asarray([len(score.token_ids) for score in scores], dtype=np.int64),
            np.asarray([is_female for _, _, is_female in some], dtype=bool),
            l1,
            l2,
        )

    def result(self, scores: GroupScores, *, seed: int) -> GroupResult:
        """The gaps of log-perplexity and of norms; intervals by the bootstrap over the texts of each group."""
        import numpy as np

        from fedbias_plugin.metrics.heldout_loss import perplexity
        from fedbias_plugin.metrics.statistics import bootstrap_means, percentile_interval
        from fedbias_plugin.scoring.items import ids_hash

        losses, drawn, counts = [], [], []
        for place, group in enumerate((scores.is_female, ~scores.is_female)):
            columns = np.column_stack([scores.nll[group], scores.tokens[group]])
            losses.append(float(columns[:, 0].sum() / columns[:, 1].sum()))
            means = bootstrap_means(columns, seed=seed + place)
            drawn.append(means[:, 0] / means[:, 1])
            counts.append(len(columns))
        gaps = drawn[0] - drawn[1]
        enough = min(counts) > 1
        return GroupResult(
            losses[0] - losses[1],
            sum(counts),
            percentile_interval(gaps) if enough else None,
            math.sqrt(2.0 / math.pi) * float(gaps.std()) if enough else None,
            n_female=counts[0],
            n_male=counts[1],
            left_out=self.left_out,
            perplexity_female=perplexity(losses[0]),
            perplexity_male=perplexity(losses[1]),
            gradient_texts=int(scores.gradient_is_female.sum()),
            clip=self.gender_clip,
            norms=norm_gaps(scores.l1, scores.l2, scores.gradient_is_female, self.gender_clip, seed),
            ids_hash=ids_hash(scores.ids),
        )

    @classmethod
    def line(cls, block: Block) -> str:
        """The gap, and what clipping keeps where gradients were taken."""
        said = (
            f"log-perplexity, women - men {with_interval(block['value'], block.get('ci95'), 3)} (n={block['n']} texts)"
        )
        if block.get("kept_female") is None:
            return said
        kept = f"{number(block['kept_female'])} / {number(block.get('kept_male'))}"
        texts = f"n={block.get('gradient_texts')} of each"
        return f"{said}; clipping to {block.get('clip'):g} keeps {kept} of gradients ({texts})"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The gap, and the gaps of norms."""
        items = f"{block.get('n_female')} texts about women, {block.get('n_male')} about men"
        yield "log-perplexity gap, nats", number(block["value"], 3), interval(block.get("ci95"), 3), items
        some = f"{block.get('gradient_texts')} texts of each"
        for key, title in (("l2", "  gradient L2 gap"), ("kept", "  kept by clipping, gap")):
            gap = block.get(f"{key}_gap")
            if gap is not None:
                yield title, number(gap, 3), interval(block.get(f"{key}_gap_ci95"), 3), some

    @classmethod
    def table(cls, block: Block) -> Iterator[str]:
        """What ``fedbias evaluate`` shows."""
        shown = with_interval(block["value"], block["ci95"], 3)
        yield f"log-perplexity gap, nats  {shown}  female - male, n={block['n_female']} and {block['n_male']} texts"
        yield f"  perplexity {number(block['perplexity_female'], 1)} and {number(block['perplexity_male'], 1)}"
        for key in NORMS if block["gradient_texts"] else ():
            own = " and ".join(f"{block[f'{key}_{group}']:.4g}" for group in ("female", "male"))
            what = {"clipped": f"share above {block['clip']:g}", "kept": f"share kept at {block['clip']:g}"}.get(key)
            gap = with_interval(block[f"{key}_gap"], block[f"{key}_gap_ci95"], 4)
            yield f"  gradient {what or key.upper()}: {own}, gap {gap} ({block['gradient_texts']} texts of each)"


def gender_of(line: str) -> str | None:
    """``female`` or ``male`` for a line of more than ten words with words of one gender alone; None for others.

    >>> gender_of("She lived with her mother in a small house by the sea .")
    'female'
    >>> gender_of("She met his brother in a small house by the old sea .")
    """
    words = line.lower().split()
    if len(words) < FEWEST_WORDS or words[0] == "=":
        return None
    female, male = not FEMALE.isdisjoint(words), not MALE.isdisjoint(words)
    return None if female is male else ("female" if female else "male")
