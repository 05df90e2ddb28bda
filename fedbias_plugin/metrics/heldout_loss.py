"""Loss on held-out clean rows: what debiasing costs in usefulness."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.metrics.base import Block, Metric, Result, Source
from fedbias_plugin.metrics.formatting import MISSING, interval, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fedbias_plugin.scoring.scorer import SentenceScorer


@dataclass(frozen=True)
class HeldoutScores:
    """Per row: shape (rows,).

    Attributes:
        nll: negative log-likelihood of the response, nats.
        tokens: of the response.
        guessing_loss: ln(vocabulary), nats per token: that of a model to which all tokens are equally likely.
        reported: whether the row is of the half that no rule compares clients by.
    """

    nll: NDArray[Any]
    tokens: NDArray[Any]
    guessing_loss: float
    reported: NDArray[Any]

    @property
    def loss(self) -> float:
        """The mean over all tokens, nats; NaN where there is none."""
        tokens = int(self.tokens.sum())
        return sum(self.nll.tolist()) / tokens if tokens else math.nan

    @property
    def compared(self) -> HeldoutScores:
        """Of the rows that clients are compared on."""
        own = ~self.reported
        return replace(self, nll=self.nll[own], tokens=self.tokens[own], reported=self.reported[own])


@dataclass(frozen=True)
class HeldoutResult(Result):
    """Mean negative log-likelihood per response token over the rows.

    Attributes:
        loss: nats per token; above ``guessing_loss`` it is worse than guessing.
        perplexity: exp(loss); None where it is beyond every float.
        guessing_loss: ln(vocabulary).
        report_loss: of every second row, which no rule weighs clients by; None where none was measured.
    """

    loss: float = 0.0
    perplexity: float | None = None
    guessing_loss: float = 0.0
    report_loss: float | None = None


@dataclass
class HeldoutLoss(Metric):
    """Loss of the global model on rows that no client trains on, natural log, nats per response token."""

    pairs: Sequence[tuple[str, str]] = field(default=(), repr=False)
    seq_length: int = 512

    name = "heldout_loss"
    is_named = False
    title = "held-out loss"
    main = "loss"
    higher_is_better = False
    digits = 4
    panels = (("Held-out loss, nats per token", ("value",)),)

    def prepare(self, source: Source) -> None:
        """Take the held-out rows of the run."""
        self.pairs, self.seq_length = source.heldout, source.seq_length

    @property
    def text_count(self) -> int:
        """One a row."""
        return len(self.pairs)

    @property
    def compared(self) -> range:
        """Every second row, from the first: rows are drawn in random order by the seed."""
        return range(0, len(self.pairs), 2)

    def measure(self, scorer: SentenceScorer, indices: Sequence[int] | None = None) -> HeldoutScores | None:
        """The loss of every response given its prompt, without an end-of-text token.

        Rows whose prompt and response are longer than ``seq_length`` are left out, as training would cut them, and so
        are those that the model has no positions for.
        """
        import numpy as np

        from fedbias_plugin.tasks.response_scores import response_scores

        chosen = range(len(self.pairs)) if indices is None else indices
        pairs = [self.pairs[index] for index in chosen]
        found = response_scores(pairs, scorer, self.seq_length, lambda index: f"held-out row {chosen[index]}")
        fits = ~np.isnan(found.tokens)
        if not fits.any():
            return None
        reported = np.asarray([index not in self.compared for index in chosen])[fits]
        guessing = math.log(scorer.vocabulary)
        return HeldoutScores(found.nll[fits], found.tokens[fits].astype(np.int64), guessing, reported)

    def result(self, scores: HeldoutScores, *, seed: int) -> HeldoutResult:
        """The mean over all tokens; its interval is the jackknife's over rows."""
        from fedbias_plugin.metrics.statistics import jackknife_interval

        rows, tokens, loss = len(scores.nll), int(scores.tokens.sum()), scores.loss
        bounds = None
        if rows > 1 and math.isfinite(loss):
            without_one = (scores.nll.sum() - scores.nll) / (tokens - scores.tokens)
            bounds = jackknife_interval(loss, without_one, possible=(0.0, math.inf))
        kept = scores.reported
        of_report = sum(scores.nll[kept].tolist()) / int(scores.tokens[kept].sum()) if kept.any() else None
        return HeldoutResult(
            *(loss, rows, bounds),
            loss=loss,
            perplexity=perplexity(loss),
            guessing_loss=scores.guessing_loss,
            report_loss=of_report,
        )

    @classmethod
    def line(cls, block: Block) -> str:
        """``held-out loss 0.8307 [0.76, 0.90] (120 rows)``."""
        shown = " ".join(filter(None, [number(block["loss"], 4), interval(block.get("ci95"), 2)]))
        return f"held-out loss {shown} ({block.get('n', MISSING)} rows)"

    @classmethod
    def rows(cls, block: Block) -> Iterator[tuple[str, str, str, str]]:
        """The loss."""
        rows = f"{block.get('n', MISSING)} clean rows"
        yield "held-out loss", number(block["loss"], 4), interval(block.get("ci95"), 2), rows

    @classmethod
    def warnings(cls, of_model: Block | None, of_clients: Mapping[int, Block]) -> Iterator[str]:
        """Whether the model is broken."""
        heldout, guessing = (of_model or {}).get("loss"), (of_model or {}).get("guessing_loss")
        if heldout is not None and not math.isfinite(heldout):
            yield "held-out loss not finite: the global model is broken, and so are its scores. Lower --learning_rate."
        elif heldout is not None and guessing is not None and heldout > guessing:
            yield (
                f"worse than guessing: the held-out loss of the global model is {heldout:.2f} nats per token; "
                f"{guessing:.2f} is that of a model to which all tokens are equally likely. Its scores say nothing "
                "about bias. If the loss was lower in round 0, the training diverged: lower --learning_rate."
            )


def perplexity(loss: float) -> float | None:
    """exp(``loss``), or None where no float can hold it.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, None)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return None
