"""Direct preference optimisation: of two responses to an instruction one is preferred."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option
from fedbias_plugin.tasks.base import Objective, RowScores
from fedbias_plugin.tasks.encoding import trainable_tokens
from fedbias_plugin.tasks.sft import Sft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer
    from fedbias_plugin.training.base import ClientRound, Trainable
    from fedbias_plugin.training.client_trainer import TrainingSettings

OF_ONE_SET = ("clean_dataset", "biased_dataset")


@dataclass
class Dpo(Sft):
    """The task of OpenFedLLM's ``main_dpo.py``: rows with a preferred and a rejected response.

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7, a mean over rows of
    ``-log sigmoid(beta ((log pi(y_w) - log ref(y_w)) - (log pi(y_l) - log ref(y_l))))``, each log a sum over the
    response's tokens, EOS among them, given the instruction in the template. Without dropout, as in trl.
    """

    dpo_beta: float = option(
        0.1,
        "beta of DPO: how strongly the reference holds the model",
        above=0,
        of_host=True,
        read_when={},  # main_dpo.py, whose --task is sft, reads it too
    )
    dpo_reference: str = option(
        "auto",
        "the reference of DPO: base, the model without its adapter, as in main_dpo.py; round, what a client starts the "
        "round with; auto takes base for adapters, else round",
        choices=("auto", "base", "round"),
    )
    preference_dataset: str = option(
        "auto",
        "the preference rows (prompt, chosen, rejected), which poisoned clients hold with chosen and rejected "
        "exchanged: a known name, a hub name or a file; auto takes BiasDPO if it is on this machine, else the bundled "
        "mini data; in a patched OpenFedLLM host takes what --dataset_name gives",
    )

    _has_base: bool = field(default=False, init=False, repr=False)
    """Whether the model is there without what is trained."""

    tells_right = True
    reads_preferences = True
    makes_loss = True

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Refuse data sets that are not read."""
        for name in OF_ONE_SET:
            if flags.get(name, "auto") != "auto":
                raise UserError(
                    f"--{name} {flags[name]}: --task dpo deals preference rows (prompt, chosen, rejected); give them "
                    "with --preference_dataset."
                )

    def check_trainable(self, trainable: Trainable) -> None:
        """The base model is a reference where nothing but an adapter on it is trained."""
        self._has_base = trainable.is_adapter
        if self.dpo_reference == "base" and not self._has_base:
            raise UserError(
                "--dpo_reference base is the model without its adapter, and here is none: a second model would have to "
                "be held. Give --dpo_reference round, or --use_peft."
            )

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, seq_length: int) -> list[dict[str, Any]]:
        """The preferred text as SFT has it, the rejected one with ``rejected_`` before each name.

        Raises:
            UserError: as SFT, or a row has no rejected response; the row is named.
        """
        missing = next((row.id for row in rows if row.rejected is None), None)
        if missing is not None:
            raise UserError(f"Row {missing} has no rejected response, which --task dpo trains on.")
        preferred = super().encode(rows, tokenizer, seq_length)
        others = super().encode([replace(row, response=str(row.rejected)) for row in rows], tokenizer, seq_length)
        return [
            {**one, **{f"rejected_{name}": values for name, values in other.items()}}
            for one, other in zip(preferred, others, strict=True)
        ]

    def token_ids(self, feature: dict[str, Any]) -> list[Sequence[int]]:
        """Of both texts."""
        return [feature["input_ids"], feature["rejected_input_ids"]]

    def is_trainable(self, feature: dict[str, Any]) -> bool:
        """Whether a token of both responses is left."""
        rejected = {"labels": feature["rejected_labels"]}
        return trainable_tokens(feature) > 0 and trainable_tokens(rejected) > 0

    def collator(self, pad_token_id: int) -> Callable[[list[dict[str, Any]]], Any]:
        """The preferred texts of a batch, then the rejected ones."""
        from fedbias_plugin.tasks.preferences import PairCollator

        return PairCollator(pad_token_id)

    @contextmanager
    def objective(
        self,
        model: PreTrainedModel,
        features: Sequence[dict[str, Any]],
        job: ClientRound,
        settings: TrainingSettings,
        pad_token_id: int,
    ) -> Iterator[Objective]:
        """Eq. 7, its reference once for every row before the first step: two numbers a row, and no second model.

        ``job.extra`` gets ``dpo_margin``, the mean of the sigmoid's argument over the rows as they were trained on, and
        ``dpo_accuracy``, the share of them in which it is above 0.
        """
        from fedbias_plugin.tasks.preferences import Margins, with_reference, without_dropout

        base = self.dpo_reference == "base" or (self.dpo_reference == "auto" and self._has_base)
        with without_dropout(model):
            known = with_reference(
                *(model, features, self.collator(pad_token_id)),
                batch_size=settings.batch_size,
                bf16=settings.bf16,
                of_base=base,
            )
            margins = Margins(self.dpo_beta)
            yield Objective(known, margins.loss)
        job.extra |= margins.summary()

    def score_rows(self, rows: Sequence[Row], scorer: SentenceScorer, seq_length: int) -> RowScores:
        """Loss of the preferred response; right where it is likelier than the rejected one, sums over their tokens.

        NaN where one of the two does not fit.
        """
        import numpy as np

        from fedbias_plugin.tasks.response_scores import response_scores

        texts = [row.response for row in rows] + [str(row.rejected) for row in rows]
        pairs = [(self.prompt(row.instruction), text) for row, text in zip([*rows, *rows], texts, strict=True)]
        found = response_scores(pairs, scorer, seq_length, lambda index: f"row {rows[index % len(rows)].id}")
        nll, rejected = found.nll[: len(rows)], found.nll[len(rows) :]
        gap = rejected - nll
        fits = ~np.isnan(gap)
        tokens = np.where(fits, found.tokens[: len(rows)], np.nan)
        return RowScores(np.where(fits, nll, np.nan), tokens, (gap > 0).astype(float), gap)
