"""ROUGE-L of the responses that a model writes to held-out instructions.

Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries": precision and recall are the length of the longest
common subsequence of words over the number of words of the response and of the reference; F1 is their harmonic mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import MISSING, interval, number, with_interval
from fedbias_plugin.metrics.generation import written_responses
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.scoring.scorer import SentenceScorer

MAX_NEW_TOKENS = 128


def require_rouge() -> None:
    """Raise :class:`UserError` when the package that computes ROUGE-L is missing."""
    if importlib.util.find_spec("rouge_score") is None:
        raise UserError("--rouge_samples needs rouge-score, which is not installed: pip install rouge-score.")


@dataclass(frozen=True)
class RougeScores:
    """ROUGE-L F1 of every response, percent, and the most tokens that one may have."""

    f1: list[float]
    max_new_tokens: int


@dataclass(frozen=True)
class RougeResult(Result):
    """Mean F1 in percent.

    Attributes:
        f1: the mean.
        max_new_tokens: most tokens of a response.
    """

    f1: float = 0.0
    max_new_tokens: int = 0


@dataclass
class RougeL(Metric):
    """ROUGE-L F1 of the global model's own responses against those of the first held-out rows, percent."""

    pairs: Sequence[tuple[str, str]] = field(default=(), repr=False)
    seq_length: int = 512
    rouge_samples: int = option(
        0,
        "held-out rows to which the global model writes responses for ROUGE-L in every measured round (greedy, up to "
        "128 tokens each); 0 writes none. Needs rouge-score",
        at_least=0,
        matters="measuring",
        unread_when={"scenario": ("none",)},
    )

    name = "rouge_l"
    is_named = False
    title = "ROUGE-L"
    main = "f1"
    higher_is_better = True
    digits = 1
    panels = (("ROUGE-L F1, % (with --rouge_samples)", ("value",)),)

    @property
    def is_on(self) -> bool:
        """Whether any response is to be written."""
        return self.rouge_samples > 0

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """Refuse more rows than are held out."""
        held_out = flags.get("heldout_samples")
        if held_out is not None and self.rouge_samples > held_out:
            raise UserError(
                f"--rouge_samples {self.rouge_samples} takes held-out rows, and --heldout_samples is {held_out}; raise "
                "that, or ask for fewer."
            )

    def prepare(self, source: Source) -> None:
        """Take the first held-out rows of the run.

        Raises:
            UserError: the package that computes ROUGE-L is missing.
        """
        require_rouge()
        self.pairs, self.seq_length = source.heldout[: self.rouge_samples], source.seq_length

    @property
    def text_count(self) -> int:
        """One a row."""
        return len(self.pairs)

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> RougeScores | None:
        """F1 of the model's greedy response to every prompt.

        Rows whose prompt is as long as ``seq_length`` are left out, as training would cut their response off, and so
        are those after whose prompt the model has no positions for a response. ``seq_length`` limits responses too.
        """
        new_tokens = min(MAX_NEW_TOKENS, self.seq_length)
        positions = scorer.longest
        prompts, references, ends = [], [], set()
        for prompt, response in self.pairs:
            ids = _prompt_ids(prompt, scorer.tokenizer)
            if len(ids) < self.seq_length and (positions is None or len(ids) + new_tokens <= positions):
                prompts.append(ids)
                references.append(response)
                ends.add(getattr(prompt, "end", None))
        if not prompts:
            return None
        responses = written_responses(scorer.model, scorer.tokenizer, prompts, new_tokens, scorer.progress, ends)
        return RougeScores(f1_scores(references, responses), new_tokens)

    def result(self, scores: RougeScores, *, seed: int) -> RougeResult:
        """The mean, and Student's t interval over rows."""
        from fedbias_plugin.metrics.statistics import t_interval

        mean = sum(scores.f1) / len(scores.f1)
        bounds = t_interval(scores.f1)
        return RougeResult(mean, len(scores.f1), bounds, f1=mean, max_new_tokens=scores.max_new_tokens)

    @classmethod
    def line(cls, block: Block) -> str:
        """``ROUGE-L 31.4 [28.0, 34.8] (20 responses)``."""
        return f"ROUGE-L {with_interval(block['f1'], block.get('ci95'))} ({block.get('n', MISSING)} responses)"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The mean F1."""
        responses = f"{block.get('n', MISSING)} responses"
        yield "ROUGE-L", number(block["f1"], 1), interval(block.get("ci95")), responses


def f1_scores(references: Sequence[str], responses: Sequence[str]) -> list[float]:
    """ROUGE-L F1 of every response in percent, words in lower case and not stemmed, as ``rouge_score`` splits them.

    Words of other letters than a to z are none to it: texts in other scripts score 0.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return [100 * scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, responses, strict=True)]


def _prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The prompt's tokens as in training, where the blank that ends it belongs to the response's first word."""
    from fedbias_plugin.tasks.encoding import Rendered, encode_text

    prompt = prompt if isinstance(prompt, Rendered) else prompt.rstrip(" ")
    return encode_text(prompt, len(prompt), tokenizer, seq_length=10**6)["input_ids"]
