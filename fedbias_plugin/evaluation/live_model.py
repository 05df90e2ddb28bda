"""Measures states and the global model in the one live model of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from fedbias_plugin.evaluation.assessor import BiasAssessor, Measurement
from fedbias_plugin.evaluation.heldout import heldout_loss
from fedbias_plugin.evaluation.original_scores import OriginalScores, original_scores
from fedbias_plugin.evaluation.plans import PlanCache, plans_folder
from fedbias_plugin.evaluation.processes import running_processes
from fedbias_plugin.evaluation.rouge import require_rouge, rouge_l
from fedbias_plugin.evaluation.scorer import NonFiniteScore, SentenceScorer
from fedbias_plugin.progress import Progress
from fedbias_plugin.state import State
from fedbias_plugin.training.states import write_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LiveModel:
    """The run's model and tokenizer, with what they are measured on.

    Args:
        assessor: the benchmarks; None measures no bias.
        heldout: prompt and response of clean rows that no client holds.
        rouge_samples: how many of them the model writes a response to.
        seq_length: tokens of a row.
        batch_tokens: tokens in one scoring batch.
        progress: draws the bars.

    Raises:
        UserError: ``rouge_samples`` asks for a package that is not installed.
    """

    def __init__(
        self,
        assessor: BiasAssessor | None,
        heldout: Sequence[tuple[str, str]],
        *,
        rouge_samples: int,
        seq_length: int,
        batch_tokens: int,
        progress: Progress,
    ) -> None:
        if rouge_samples:
            require_rouge()
        self._assessor = assessor
        self._heldout = heldout
        self._rouge_samples = rouge_samples
        self._seq_length = seq_length
        self._batch_tokens = batch_tokens
        self._progress = progress
        self._plans = PlanCache(plans_folder())

    def prefix_token(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
        """What every scored sentence is conditioned on."""
        return self._scorer(model, tokenizer).prefix_token

    def assess_clients(
        self,
        title: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        global_state: State,
        local_states: Mapping[int, State],
    ) -> tuple[dict[int, Measurement], dict[int, str]]:
        """Every client's state on the probe items; the model holds the global state afterwards.

        Returns:
            client id -> measurement, and for clients whose model gives scores that are no numbers, what is wrong.
        """
        measurements: dict[int, Measurement] = {}
        broken: dict[int, str] = {}
        if self._assessor is None:
            return measurements, broken
        try:
            with self._progress.task(title, len(local_states) * self._assessor.probe_texts) as advance:
                scorer = self._scorer(model, tokenizer, advance)
                for client, state in local_states.items():
                    write_state(model, state)
                    try:
                        measurements[client] = self._assessor.assess(scorer)
                    except NonFiniteScore as error:
                        broken[client] = f"its model's scores are not finite: {error}"
        finally:
            write_state(model, global_state)
        return measurements, broken

    def evaluate(
        self, title: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, is_original: bool = False
    ) -> tuple[Measurement, dict[str, float | int] | None]:
        """The model as it is: bias on all items, and the loss on the held-out rows (see ``heldout_loss``).

        ``is_original`` says that nobody has trained it yet, so that other runs may have measured it before.
        """
        texts = len(self._heldout) + (self._assessor.all_texts if self._assessor else 0)
        with self._progress.task(title, texts) as advance:
            originals = original_scores() if is_original else None
            scorer = self._scorer(model, tokenizer, advance, originals)
            measured = self._assessor.evaluate(scorer) if self._assessor else Measurement()
            return measured, heldout_loss(scorer, self._heldout, self._seq_length)

    def rouge_l(
        self, title: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, float | int] | None:
        """ROUGE-L of the model's responses to the first held-out rows (see ``rouge.rouge_l``), where it is wanted."""
        pairs = self._heldout[: self._rouge_samples]
        if not pairs:
            return None
        with self._progress.task(title, len(pairs)) as advance:
            return rouge_l(model, tokenizer, pairs, self._seq_length, advance)

    def _scorer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Callable[[int], None] | None = None,
        originals: OriginalScores | None = None,
    ) -> SentenceScorer:
        return SentenceScorer(
            model,
            tokenizer,
            max_batch_tokens=self._batch_tokens,
            progress=progress,
            plans=self._plans,
            processes=running_processes(),
            originals=originals,
        )
