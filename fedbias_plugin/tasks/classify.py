"""Text classification: which label has a row, told from its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.base import LABEL_FIELD
from fedbias_plugin.data.scenarios import EVERYWHERE, ROLES
from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.options import option
from fedbias_plugin.registry import load
from fedbias_plugin.tasks.base import ModelKind, RowScores, Task
from fedbias_plugin.tasks.encoding import check_is_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer

TEXTCNN = "textcnn"
NEEDS_TEXTS = {
    "bias_benchmarks": ("none", ""),
    "rouge_samples": (0,),
    "cda_ratio": (0.0,),
    "columns": (None,),
    "dp_epsilon": (None,),
    "dp_noise_multiplier": (None,),
}
"""Flags of what needs a language model or responses -> values without it. For ``--dp_unit client`` the last two fit."""


@dataclass
class Classify(Task):
    """Labelled rows through a language model with a classification head, or through a small convolutional net.

    A row's instruction is its text, its response its label. The labels are those of all rows of the run, in order.
    """

    label_field: str = LABEL_FIELD
    text_field: str = option("instruction", "column of a row's text")
    classifier: str = option(
        "lm",
        "lm: --model_name_or_path, any encoder or decoder, with a classification head; textcnn: a convolutional net of "
        "2.7M weights over words (Kim 2014), from random weights",
        choices=("lm", TEXTCNN),
    )
    random_weights: bool = option(
        False, "start the classifier from weights drawn from --seed, not from those of --model_name_or_path"
    )
    labels: tuple[str, ...] = field(default=(), init=False)

    tells_right = True
    reads_all_rows = True

    @classmethod
    def defaults(cls, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Clean clients, no bias benchmarks; for a small net its own learning rate, and no adapters."""
        own: dict[str, Any] = {"scenario": "3C", "bias_benchmarks": "none", "heldout_samples": 300}
        if flags.get("classifier") == TEXTCNN:
            own |= {"use_peft": False, "learning_rate": 1e-3, "gradient_checkpointing": False}
        return own

    @classmethod
    def check_flags(cls, flags: Mapping[str, Any]) -> None:
        """Refuse what needs responses, a language model's likelihoods, or biased rows where there are none."""
        if flags["dp_unit"] == "client":
            flags = {**flags, "dp_epsilon": None, "dp_noise_multiplier": None}
        if load("rule", flags["aggregation"]).needs:
            raise UserError(
                f"--aggregation {flags['aggregation']} weighs clients by bias scores, which --task classify has none "
                "of: give --aggregation plain or another."
            )
        for name, without in NEEDS_TEXTS.items():
            if flags.get(name, without[0]) not in without:
                raise UserError(
                    f"--{name} {flags[name]} needs a model that writes or scores texts, and --task classify trains one "
                    f"that tells labels: drop it{f', or give --{name} {without[0]}' if without[0] else ''}."
                )
        if flags["scenario"] in {*ROLES, *EVERYWHERE} - {"3C"} and flags["biased_dataset"] == "auto":
            raise UserError(
                f"--scenario {flags['scenario']} has biased rows, and those of BiasDPO have no label to be told: give "
                "--scenario 3C, or with --biased_dataset FILE labelled rows of your own."
            )

    @classmethod
    def fields(cls, flags: Mapping[str, Any]) -> tuple[str, str]:
        """The columns of text and label."""
        return flags["text_field"], flags["label_field"]

    def read(self, partition: Partition) -> None:
        """Learn the labels of all rows.

        Raises:
            UserError: there is one label only, or about every row has one of its own.
        """
        trained = [row.response for dataset in partition.clients for row in dataset.rows]
        kept = [row.response for row in partition.heldout]
        kept += [row.response for dataset in partition.clients for row in dataset.test]
        self.labels = tuple(sorted({*trained, *kept}))
        if len(self.labels) < 2:
            raise UserError(
                f"--label_field {self.label_field}: all {len(trained):,} rows have the label {quoted(self.labels[0])}; "
                "a classifier needs two."
            )
        if len(self.labels) > max(10, len(trained) // 2):
            raise UserError(
                f"--label_field {self.label_field} has {len(self.labels):,} values in {len(trained):,} rows to train "
                "on: that is no column of labels."
            )

    @property
    def model_kind(self) -> ModelKind:
        """A sequence classifier with a head for these labels, or the small net."""
        numbered = dict(enumerate(self.labels))
        settings = {"id2label": numbered, "label2id": {label: place for place, label in numbered.items()}}
        if self.classifier == TEXTCNN:
            return ModelKind(settings=settings, make=_textcnn, random_weights=True)
        return ModelKind("AutoModelForSequenceClassification", settings, random_weights=self.random_weights)

    def encode(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, seq_length: int) -> list[dict[str, Any]]:
        """Tokens of the text, cut to ``seq_length``, and the number of the label.

        Raises:
            UserError: a text is not Unicode text, or a label is none of the run's; the row is named.
        """
        numbers = {label: place for place, label in enumerate(self.labels)}
        features = []
        for row in rows:
            check_is_text(row.instruction, row)
            if row.response not in numbers:
                raise UserError(
                    f"Row {row.id} has the label {quoted(row.response)}, which is none of the run's: "
                    f"{', '.join(self.labels[:20])}."
                )
            ids = self._ids(row.instruction, tokenizer, seq_length)
            features.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": numbers[row.response]})
        return features

    def _ids(self, text: str, tokenizer: PreTrainedTokenizerBase, seq_length: int) -> list[int]:
        if self.classifier == TEXTCNN:
            from fedbias_plugin.tasks.textcnn import word_ids

            return word_ids(text)[:seq_length]
        return list(tokenizer(text, truncation=True, max_length=seq_length, verbose=False)["input_ids"])

    def is_trainable(self, feature: dict[str, Any]) -> bool:
        """Every row has a label."""
        return True

    def collator(self, pad_token_id: int) -> Callable[[list[dict[str, Any]]], Any]:
        """Padded on the right; one label a row."""
        from fedbias_plugin.tasks.collator import LabelCollator

        return LabelCollator(0 if self.classifier == TEXTCNN else pad_token_id)

    def score_rows(self, rows: Sequence[Row], scorer: SentenceScorer, seq_length: int) -> RowScores:
        """Cross-entropy (nats) of every row's label, and whether it is the likeliest; ties go to the first label."""
        from fedbias_plugin.tasks.label_scores import label_scores

        features = self.encode(rows, scorer.tokenizer, seq_length)
        pad = scorer.tokenizer.pad_token_id or 0
        return label_scores(scorer, features, self.collator(pad), lambda index: f"row {rows[index].id}")


def _textcnn(settings: Mapping[str, Any]) -> Any:
    from fedbias_plugin.tasks.textcnn import TextCnn, TextCnnConfig

    return TextCnn(TextCnnConfig(**settings))
