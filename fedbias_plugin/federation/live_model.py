"""Measures states and the global model in the one live model of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.scoring_choice import ScoringChoice, choose_dtype
from fedbias_plugin.metrics.suite import Measurement, Suite
from fedbias_plugin.progress import Progress
from fedbias_plugin.scoring.original_scores import OriginalScores, original_scores
from fedbias_plugin.scoring.plans import PlanCache, plans_folder
from fedbias_plugin.scoring.precision import FLOAT32
from fedbias_plugin.scoring.processes import running_processes
from fedbias_plugin.scoring.scorer import NonFiniteScore, SentenceScorer
from fedbias_plugin.state import State
from fedbias_plugin.training.parameters import same_state, write_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.metrics.client_tests import ClientTests
    from fedbias_plugin.tasks.base import RowScores


class LiveModel:
    """The run's model and tokenizer, with what they are measured by.

    Args:
        suite: the metrics.
        batch_tokens: tokens in one scoring batch.
        progress: draws the bars.
        dtype: ``--scoring_dtype``.

    Attributes:
        choice: what is scored in; None until the first model, which nobody has trained yet, is at hand.
    """

    def __init__(self, suite: Suite, *, batch_tokens: int, progress: Progress, dtype: str = FLOAT32) -> None:
        self._suite = suite
        self._batch_tokens = batch_tokens
        self._dtype = dtype
        self.choice: ScoringChoice | None = None
        self._progress = progress
        self._plans = PlanCache(plans_folder())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run is scored in; JSON-ready."""
        return {"scoring": self.choice.to_json() if self.choice else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep to what the run began with; runs from before the flag existed were scored in the model's own type."""
        kept = state.get("scoring")
        self.choice = ScoringChoice(**kept) if kept else None

    def prefix_token(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
        """What every scored sentence is conditioned on."""
        return self._scorer(model, tokenizer).prefix_token

    def assess(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        global_state: State,
        title: str,
        local_states: Mapping[int, State],
        also: Sequence[str] = (),
        *,
        on_half: bool = False,
    ) -> tuple[dict[int, Measurement], dict[int, str]]:
        """Every client's state on the probe items, equal states once; the model holds the global state afterwards.

        Args:
            model: the live model.
            tokenizer: the model's.
            global_state: theta.
            title: of the progress bar.
            local_states: client id -> theta_i.
            also: metrics that are measured too though they are not of clients, on all their items.
            on_half: by those on half of their items alone, see :meth:`Suite.assess`.

        Returns:
            client id -> measurement, and for clients whose model gives scores that are no numbers, what is wrong.
        """
        measurements: dict[int, Measurement] = {}
        broken: dict[int, str] = {}
        if not self._suite.of_clients and not also:
            return measurements, broken
        try:
            texts = len(local_states) * self._suite.probe_texts
            with (
                self._progress.task(title, texts) as advance,
                self._scorer(model, tokenizer, advance).tried_once() as scorer,
            ):
                for client, state in local_states.items():
                    twin = next((other for other in measurements if same_state(local_states[other], state)), None)
                    if twin is not None:  # as of clients that trained nothing and sent theta
                        measurements[client] = replace(measurements[twin])
                        advance(self._suite.probe_texts)
                        continue
                    write_state(model, state)
                    try:
                        measurements[client] = self._suite.assess(scorer, also, on_half=on_half)
                    except NonFiniteScore as error:
                        broken[client] = f"its model's scores are not finite: {error}"
        finally:
            write_state(model, global_state)
        return measurements, broken

    def own_models(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        global_state: State,
        states: Iterable[tuple[int, State]],
        tests: ClientTests,
    ) -> dict[int, RowScores]:
        """Client id -> scores of its own model on its own test rows; ``model`` holds the global state afterwards."""
        scores = {}
        try:
            for client, state in states:
                write_state(model, state)
                scores[client] = tests.scores_of(client, self._scorer(model, tokenizer))
        finally:
            write_state(model, global_state)
        return scores

    def evaluate(
        self,
        number: int,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        whole: bool = True,
        is_global: bool = True,
    ) -> Measurement:
        """The model as it is after round ``number``, by every metric on all its items.

        Without ``whole`` by those alone that are measured in every round; nothing is read where there are none. In
        round 0 nobody has trained it yet, and other runs may have measured it before. Without ``is_global`` it is what
        clients train in.

        Raises:
            UserError: a score is no number, or an item cannot be measured.
        """
        texts = self._suite.texts_of(whole=whole)
        if not whole and not texts:
            return Measurement()
        what = "global model" if is_global else "clients' model"
        with self._progress.task(f"round {number}: score the {what}", texts) as advance:
            originals = original_scores() if number == 0 and is_global else None
            try:
                with self._scorer(model, tokenizer, advance, originals).tried_once() as scorer:
                    return self._suite.evaluate(scorer, whole=whole)
            except NonFiniteScore as error:
                raise UserError(f"The {what} after round {number} is broken. {error}") from None

    def _scorer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        progress: Callable[[int], None] | None = None,
        originals: OriginalScores | None = None,
    ) -> SentenceScorer:
        def make(dtype: str, originals: OriginalScores | None = None) -> SentenceScorer:
            return SentenceScorer(
                model,
                tokenizer,
                max_batch_tokens=self._batch_tokens,
                progress=progress if self.choice else None,
                plans=self._plans,
                processes=running_processes(),
                originals=originals,
                dtype=dtype,
            )

        if self.choice is None:
            probes = [(metric, self._suite.splits[name][0]) for name, metric in self._suite.of_clients.items()]
            self.choice = choose_dtype(
                self._dtype, model, probes, make, seed=self._suite.seed, processes=running_processes()
            )
        return make(self.choice.dtype, originals)
