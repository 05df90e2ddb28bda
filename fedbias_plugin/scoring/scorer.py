"""Log-probabilities of sentences under any Hugging Face causal LM (docs/metrics.md).

``S(x) = sum_t log p(x_t | prefix, x_<t)``: the prefix is the BOS token, or EOS where the tokenizer has no BOS, exactly
once. The model is left as it was found, the global random state included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.nn.parallel import DistributedDataParallel

from fedbias_plugin.errors import UserError
from fedbias_plugin.scoring.ability import Ability, attention_window, find_ability
from fedbias_plugin.scoring.forward import SLICED, batch_log_probs
from fedbias_plugin.scoring.inference import embedding_device, evaluating, text_config
from fedbias_plugin.scoring.items import FloatArray, ScoreRequest, TokenScores
from fedbias_plugin.scoring.original_scores import OriginalScores
from fedbias_plugin.scoring.plans import PlanCache
from fedbias_plugin.scoring.precision import BFLOAT16, FLOAT32, check_dtype, scoring_kernels
from fedbias_plugin.scoring.prefix_tree import ScoringPlan, make_batch, plan_batches
from fedbias_plugin.scoring.processes import ALONE, Processes, is_sharded
from fedbias_plugin.scoring.soft_prompts import virtual_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["ScoreRequest", "SentenceScorer", "TokenScores"]

MAX_LOGITS = 2**27
"""Predicted positions times vocabulary in one batch, where the head cannot be sliced: 512 MiB in float32."""
TREE_TOKENS = 128
"""Nodes of a prefix tree: one of 256 saves 3% more tokens and costs more attention than that in a small model."""
CPU_TOKENS = 1024
"""Most tokens of a batch on a CPU, where a larger one only leaves the caches."""


class NonFiniteScore(UserError):
    """A sentence's score is NaN or infinite; the message names the sentence."""


class SentenceScorer:
    """Scores texts with one model, each beginning that several texts share only once. One thread at a time.

    Args:
        model: a causal LM, plain, quantised, spread over devices, or a ``PeftModel`` (scored with its active adapters).
        tokenizer: of the model; its padding side and padding token do not matter.
        max_batch_tokens: rows times padded length of one batch; a longer single text is a batch of its own.
        progress: called after each batch with the number of texts it held.
        plans: where tokenised and packed texts are looked up; its own when None.
        processes: those that score the same texts with the same model and share the work.
        originals: where the scores of the model, which is then the original one, are looked up and kept.
        dtype: ``float32`` for the model's own type, ``bfloat16`` to score a float32 model in that.

    Attributes:
        prefix_token: the token every text is conditioned on: BOS, else EOS, else (of encoders) CLS.
        prefix_id: its id.

    Raises:
        UserError: the tokenizer has neither BOS nor EOS, ``max_batch_tokens`` is below 1, or the model cannot be scored
            in ``dtype``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_tokens: int = 4096,
        progress: Callable[[int], None] | None = None,
        plans: PlanCache | None = None,
        processes: Processes = ALONE,
        originals: OriginalScores | None = None,
        dtype: str = FLOAT32,
    ) -> None:
        if max_batch_tokens < 1:
            raise UserError(f"a scoring batch needs at least 1 token, not {max_batch_tokens} (--bias_batch_tokens).")
        self.model: Any = model.module if isinstance(model, DistributedDataParallel) else model
        check_dtype(self.model, dtype)
        self.tokenizer, self.dtype = tokenizer, dtype
        self.max_batch_tokens = max_batch_tokens
        self.progress = progress
        self._plans = plans or PlanCache()
        self._processes = processes
        self._originals = originals if processes.size == 1 else None
        self._ability: Ability | None = None
        self._is_same = False
        if processes.size > 1 and is_sharded(self.model):
            raise UserError("a model whose weights are spread over the processes (FSDP, ZeRO-3) cannot be scored.")
        self.prefix_token, self.prefix_id = _prefix(tokenizer)

    @contextlib.contextmanager
    def tried_once(self) -> Iterator[Self]:
        """One trial of the model for all scores within: nothing but the values of weights may change meanwhile.

        What keeps a model from taking trees is looked for again every time, as it may lie in one client's weights.
        """
        self._is_same = True
        try:
            yield self
        finally:
            self._is_same, self._ability = False, None

    def score(
        self, requests: Sequence[ScoreRequest], describe: Callable[[int], str] | None = None
    ) -> list[TokenScores]:
        """Log-probability of every token of every ``request.text`` given the prefix token and ``request.context``.

        The text's tokens are those of the whole string beyond the tokens of the context; white space that ends the
        context counts as the beginning of the text, as most tokenizers join it to the next word.

        Args:
            requests: what to score, in any order; neither order nor batch size changes a score (1e-3 in float32).
            describe: names request ``i`` in an error; default ``item i``.

        Returns:
            One result per request, in the order of ``requests``.

        Raises:
            UserError: a text without tokens, longer than the model allows, with tokens that the model does not have,
                or with a log-probability that is not finite. The message names the item.
        """
        name = describe or (lambda index: f"item {index}")
        if not requests:
            return []

        def make(pack_tokens: int | None) -> ScoringPlan:
            return self._plans.plan(requests, self.tokenizer, self.prefix_id, pack_tokens, name)

        plan, log_probs = self._scored(make, name)
        targets = plan.targets[plan.text_predictions]
        scored = log_probs[plan.text_predictions]
        ends = plan.text_starts[1:-1]
        return [
            TokenScores(ids, values)
            for ids, values in zip(np.split(targets, ends), np.split(scored, ends), strict=True)
        ]

    def score_tokens(
        self,
        texts: Sequence[Sequence[int]],
        starts: Sequence[int],
        describe: Callable[[int], str] | None = None,
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Of texts that somebody else made tokens of: nothing is put before them.

        Args:
            texts: token ids, at least two each; the last is predicted and not read.
            starts: position of the first scored token of every text, at least 1.
            describe: as of :meth:`score`.

        Returns:
            Shapes (texts,): the sum of the log-probabilities of the scored tokens, and whether each of them is the
            model's likeliest.

        Raises:
            UserError: as :meth:`score`.
        """
        if not texts:
            return np.zeros(0), np.zeros(0, np.bool_)
        name = describe or (lambda index: f"item {index}")
        plan, found = self._scored(lambda tokens: self._plans.plan_of_tokens(texts, starts, tokens), name, True)
        scored, begins = found[plan.text_predictions], plan.text_starts[:-1]
        return np.add.reduceat(scored[:, 0], begins), np.minimum.reduceat(scored[:, 1], begins) > 0

    def _scored(
        self, make: Callable[[int | None], ScoringPlan], name: Callable[[int], str], with_likeliest: bool = False
    ) -> tuple[ScoringPlan, FloatArray]:
        """The plan, and of every prediction what :func:`batch_log_probs` gives, of all processes."""
        try:
            plan, found, sample = self._my_share(make, name, with_likeliest)
        except Exception:
            self._processes.agree(failed=True)
            raise
        self._processes.agree(size=len(found), sample=sample)
        found = self._processes.total(found)
        _check_finite(found, plan, name)
        return plan, found

    def _my_share(
        self, make: Callable[[int | None], ScoringPlan], name: Callable[[int], str], with_likeliest: bool
    ) -> tuple[ScoringPlan, FloatArray, float]:
        """The plan, the log-probabilities of this process's part of it (zeros elsewhere), and a sum over the first
        batch, which every process scores to show that all hold the same model."""
        with evaluating(self.model):
            able = self._able()
            plan = self._plan(make, able.trees)
            self._check_model_limits(plan, name, unread=int(with_likeliest))
            if not with_likeliest:
                return plan, *self._kept_or_computed(plan, able.head, name)
            with scoring_kernels(self.model, len(plan.ids), self.dtype):
                return plan, *self._log_probs(plan, able.head, name, with_likeliest=True)

    def _kept_or_computed(self, plan: ScoringPlan, head: str, name: Callable[[int], str]) -> tuple[FloatArray, float]:
        """As :meth:`_log_probs`; of the original model looked up, where another run has computed them."""
        how = f"{head} {self.max_batch_tokens}{f' {BFLOAT16}' if self.dtype == BFLOAT16 else ''}"
        path = self._originals.path(plan, self.model, how) if self._originals else None
        kept = self._originals.load(path, len(plan.targets)) if self._originals and path else None
        if kept is not None:
            if self.progress is not None:
                self.progress(int(plan.texts_by_pack.sum()))
            return kept, 0.0
        with scoring_kernels(self.model, len(plan.ids), self.dtype):
            log_probs, sample = self._log_probs(plan, head, name)
        if self._originals and path:
            self._originals.store(path, log_probs)
        return log_probs, sample

    def _able(self) -> Ability:
        found = self._ability or find_ability(self.model, self.vocabulary, self.longest)
        self._ability = found if self._is_same and found.trees else None
        return found

    def _plan(self, make: Callable[[int | None], ScoringPlan], trees: bool) -> ScoringPlan:
        if not trees:
            return make(None)
        plan = make(min(TREE_TOKENS, self.max_batch_tokens))
        window = attention_window(self.model)
        longest = plan.pack_sizes.max() + virtual_tokens(self.model)
        return plan if window is None or longest <= window else make(None)

    @property
    def vocabulary(self) -> int:
        """Token ids below it have an embedding."""
        embeddings = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        return embeddings if isinstance(embeddings, int) else len(self.tokenizer)

    @property
    def longest(self) -> int | None:
        """Most tokens, the prefix among them, that the model has positions for; None when it does not say.

        What stands before every text, a soft prompt, has taken its positions.
        """
        found = getattr(text_config(self.model), "max_position_embeddings", None)
        return found - virtual_tokens(self.model) if isinstance(found, int) else None

    def _check_model_limits(self, plan: ScoringPlan, name: Callable[[int], str], unread: int = 0) -> None:
        for index in np.flatnonzero(plan.lengths - unread > (self.longest or np.inf)):
            raise UserError(
                f"{name(int(index))} has {plan.lengths[index]} tokens (with {self.prefix_token}), more than the "
                f"{self.longest} positions of the model (max_position_embeddings); shorten it or use a larger model."
            )
        for index in np.flatnonzero(plan.largest_ids >= self.vocabulary):
            raise UserError(
                f"{name(int(index))}: token {plan.largest_ids[index]} is beyond the model's {self.vocabulary} "
                "embeddings; is this the model's own tokenizer?"
            )

    def _log_probs(
        self, plan: ScoringPlan, head: str, name: Callable[[int], str], with_likeliest: bool = False
    ) -> tuple[FloatArray, float]:
        logits = 1 if head == SLICED else max(1, getattr(text_config(self.model), "vocab_size", None) or 1)
        result: FloatArray = np.zeros((len(plan.targets), 2) if with_likeliest else len(plan.targets))
        texts, sample = plan.texts_by_pack, 0.0
        on_cpu = embedding_device(self.model).type == "cpu"
        most = min(self.max_batch_tokens, CPU_TOKENS) if on_cpu else self.max_batch_tokens
        for number, packs in enumerate(plan_batches(plan, most, MAX_LOGITS // logits)):
            is_mine = self._processes.is_mine(number)
            if is_mine or number == 0:
                batch = make_batch(plan, packs, self.prefix_id)
                values = batch_log_probs(
                    self.model, batch, trees=plan.is_tree, head=head, with_likeliest=with_likeliest
                )
                sample = float(values.sum()) if number == 0 else sample
            if is_mine:
                result[batch.predictions] = values
            if self._processes.size == 1:
                _check_finite(result, plan, name)
            if self.progress is not None:
                self.progress(int(texts[packs].sum()))
        return result, sample


def _prefix(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    for token, token_id in (
        (tokenizer.bos_token, tokenizer.bos_token_id),
        (tokenizer.eos_token, tokenizer.eos_token_id),
        (getattr(tokenizer, "cls_token", None), getattr(tokenizer, "cls_token_id", None)),  # of an encoder
    ):
        if token_id is not None:
            return str(token), int(token_id)
    raise UserError(
        "the tokenizer has neither a BOS nor an EOS token, so the first word of a sentence has nothing to be "
        "conditioned on; set bos_token in its tokenizer_config.json."
    )


def _check_finite(log_probs: FloatArray, plan: ScoringPlan, name: Callable[[int], str]) -> None:
    broken = np.flatnonzero(~np.isfinite(log_probs if log_probs.ndim == 1 else log_probs[:, 0]))
    if len(broken):
        raise NonFiniteScore(
            f"{name(plan.text_of(int(broken[0])))}: the model's log-probability is not finite. The training has "
            "diverged or the weights overflow in their dtype; try float32 or bfloat16, or a smaller learning rate."
        )
