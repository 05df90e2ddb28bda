"""Texts in, a number from 0 to 1 for each: whatever judges what a model writes, behind one call.

A classifier is a local folder of a Transformers sequence classifier, or ``vader``, Hutto and Gilbert's rules (2014) for
sentiment. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedbias_plugin.errors import UserError, first_line

if TYPE_CHECKING:
    from fedbias_plugin.scoring.items import FloatArray

VADER = "vader"
ROWS_AT_ONCE = 32
LONGEST = 512


@dataclass(frozen=True)
class Classifier:
    """A judge of texts.

    Attributes:
        name: of the folder, or ``vader`` with its version.
        sha256: of the files that decide its judgement: weights, configuration and tokenizer, or VADER's lexicon.
        score: texts -> numbers in [0, 1], shape (texts,).
    """

    name: str
    sha256: str
    score: Callable[[Sequence[str]], FloatArray]


def load_classifier(flag: str, given: str, high: Sequence[str], low: Sequence[str] = ()) -> Classifier:
    """The classifier that a flag names.

    Its score is (1 + P(high) - P(low)) / 2 where it has labels of both kinds, else P(high). Two labels without names
    (``LABEL_0``, ``LABEL_1``) are low and high. Labels that do not exclude each other (``multi_label_classification``,
    or one label alone) have probabilities of their own.

    Args:
        flag: its name, for messages.
        given: a folder, or ``vader``.
        high, low: labels for the upper and the lower end, in small letters.

    Raises:
        UserError: the folder is no sequence classifier, or it has none of these labels; VADER is not installed.
    """
    if given == VADER:
        return _vader(flag)
    folder = Path(given).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f"--{flag} {given} must be a folder with a Transformers sequence classifier (config.json).")
    return _transformer(flag, folder, high, low)


def check_classifier(flag: str, given: str | None, takes_vader: bool) -> None:
    """Refuse before anything is read what cannot be a classifier.

    Raises:
        UserError: no such folder, or VADER where it does not fit or is not installed.
    """
    if given == VADER:
        if not takes_vader:
            raise UserError(f"--{flag} {VADER}: VADER judges sentiment alone; give a folder.")
        _require_vader(flag)
    elif given is not None and not (Path(given).expanduser() / "config.json").is_file():
        what = "a folder with a Transformers sequence classifier (config.json)"
        raise UserError(f"--{flag} {given} must be {what}{', or vader' if takes_vader else ''}.")


def columns_of(labels: Mapping[int, str], high: Sequence[str], low: Sequence[str]) -> tuple[list[int], list[int]]:
    """Which outputs are of the upper and which of the lower end.

    >>> columns_of({0: "NEG", 1: "neutral", 2: "Positive"}, ("positive", "pos"), ("negative", "neg"))
    ([2], [0])
    >>> columns_of({0: "LABEL_0", 1: "LABEL_1"}, ("toxic",), ())
    ([1], [])
    """
    names = {place: label.lower().replace("-", "_").replace(" ", "_") for place, label in labels.items()}
    if sorted(names.values()) == ["label_0", "label_1"]:
        return [place for place, name in names.items() if name == "label_1"], []
    found = ([place for place, name in names.items() if name in ends] for ends in (high, low))
    return next(found), next(found)


def _transformer(flag: str, folder: Path, high: Sequence[str], low: Sequence[str]) -> Classifier:
    """It works on the CPU, beside the model that is measured."""
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from fedbias_plugin.files import sha256_of_files
    from fedbias_plugin.training.models import without_library_bars

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with without_library_bars():
            model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever Transformers, safetensors and json make of damaged files
        raise UserError(f"--{flag} {folder} cannot be loaded as a sequence classifier: {first_line(error)}.") from error
    model = model.eval()
    labels = {int(place): str(label) for place, label in model.config.id2label.items()}
    above, below = columns_of(labels, high, low)
    if not above:
        raise UserError(
            f"--{flag} {folder}: none of its labels ({', '.join(labels.values())}) is one of {', '.join(high)}; rename "
            "them in id2label of its config.json."
        )
    independent = model.config.problem_type == "multi_label_classification" or len(labels) == 1
    longest = min(LONGEST, getattr(model.config, "max_position_embeddings", None) or LONGEST)

    def score(texts: Sequence[str]) -> FloatArray:
        parts = []
        for start in range(0, len(texts), ROWS_AT_ONCE):
            rows = list(texts[start : start + ROWS_AT_ONCE])
            # Some models read a row's last token that is no padding, and must know the padding token: one row alone.
            batches = (
                [rows] if model.config.pad_token_id is not None and tokenizer.pad_token else [[row] for row in rows]
            )
            for batch in batches:
                made = tokenizer(
                    batch, return_tensors="pt", padding=len(batch) > 1, truncation=True, max_length=longest
                )
                with torch.inference_mode():
                    inputs = {name: made[name] for name in ("input_ids", "attention_mask")}
                    logits = model(**inputs).logits.float()
                chances = (logits.sigmoid() if independent else logits.softmax(-1)).cpu().double().numpy()
                most = chances[:, above].max(1) if independent else chances[:, above].sum(1)
                parts.append((1 + most - chances[:, below].sum(1)) / 2 if below else most)
        return np.clip(np.concatenate(parts), 0.0, 1.0) if parts else np.zeros(0)

    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin", ".txt"))
    return Classifier(folder.resolve().name, sha256_of_files(files), score)


def _require_vader(flag: str) -> None:
    if importlib.util.find_spec("vaderSentiment") is None:
        raise UserError(f"--{flag} {VADER} needs vaderSentiment, which is not installed: pip install vaderSentiment.")


def _vader(flag: str) -> Classifier:
    _require_vader(flag)
    import numpy as np
    from vaderSentiment import vaderSentiment

    from fedbias_plugin.files import sha256_of_file

    analyzer = vaderSentiment.SentimentIntensityAnalyzer()

    def score(texts: Sequence[str]) -> FloatArray:
        return np.asarray([(1 + analyzer.polarity_scores(text)["compound"]) / 2 for text in texts], dtype=np.float64)

    lexicon = Path(vaderSentiment.__file__).with_name("vader_lexicon.txt")
    return Classifier(f"{VADER} {importlib.metadata.version('vaderSentiment')}", sha256_of_file(lexicon), score)
