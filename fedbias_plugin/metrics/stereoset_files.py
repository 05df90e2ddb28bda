"""Reading StereoSet's two file formats: the development set and per-sentence predictions."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.names import check_label

KINDS = ("intrasentence", "intersentence")
LABELS = ("stereotype", "anti-stereotype", "unrelated")


@dataclass(frozen=True)
class Cluster:
    """Three sentences about one target term.

    Attributes:
        id: of the cluster.
        kind: ``intrasentence`` or ``intersentence``.
        target: the target term, for example ``chess player``.
        domain: bias type: gender, profession, race or religion.
        context: the sentence before (intersentence) or the sentence with BLANK (intrasentence).
        sentences: stereotype, anti-stereotype, unrelated.
        sentence_ids: in the same order.
    """

    id: str
    kind: str
    target: str
    domain: str
    context: str
    sentences: tuple[str, str, str]
    sentence_ids: tuple[str, str, str]


def parse_clusters(path: str | os.PathLike[str], text: str) -> list[Cluster]:
    """Clusters of a ``dev.json``, intrasentence first.

    Raises:
        UserError: see :meth:`StereoSet.load`.
    """
    document = _json(path, text)
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or not any(kind in data for kind in KINDS):
        raise UserError(f'{path}: a StereoSet file is {{"data": {{"intrasentence": [...], "intersentence": [...]}}}}.')
    clusters = []
    for kind in KINDS:
        rows = data.get(kind, [])
        if not isinstance(rows, list):
            raise UserError(f"{path}: {kind} must be a list of clusters.")
        clusters += [_cluster(row, kind, f"{path}, {kind} cluster {index}") for index, row in enumerate(rows)]
    if not clusters:
        raise UserError(f"{path}: there are no clusters in it.")
    _refuse_repeated(path, "cluster", [cluster.id for cluster in clusters])
    _refuse_repeated(path, "sentence", [name for cluster in clusters for name in cluster.sentence_ids])
    return clusters


def parse_predictions(path: str | os.PathLike[str], text: str) -> dict[str, float]:
    """Sentence id -> score of a predictions file.

    Raises:
        UserError: not JSON, a row without id or finite score, or an id twice.
    """
    document = _json(path, text)
    if not isinstance(document, dict) or not any(kind in document for kind in KINDS):
        raise UserError(f'{path}: a predictions file is {{"intrasentence": [{{"id", "score"}}, ...], ...}}.')
    scores: dict[str, float] = {}
    for kind in KINDS:
        rows = document.get(kind, [])
        if not isinstance(rows, list):
            raise UserError(f"{path}: {kind} must be a list of objects with id and score.")
        for index, row in enumerate(rows):
            where = f"{path}, {kind} row {index}"
            name, score = _prediction(row, where)
            if name in scores:
                raise UserError(f"{where}: sentence {name} already has a score.")
            scores[name] = score
    return scores


def _json(path: str | os.PathLike[str], text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}).") from error
    except (ValueError, RecursionError) as error:  # an integer of more than 4,300 digits, a list in a list in a ...
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"{path}: not JSON that can be read ({reason}).") from None


def _text(row: Any, field: str, where: str) -> str:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {field} is missing, empty or not a text.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise UserError(f"{where}: {field} holds half a character (lone surrogate U+{code:04X}).") from None
    return value.strip()


def _label(row: Any, field: str, where: str) -> str:
    return check_label(_text(row, field, where), f"{where}: {field}")


def _cluster(row: Any, kind: str, where: str) -> Cluster:
    cluster_id = _label(row, "id", where)
    where = f"{where} (id {cluster_id})"
    sentences = row.get("sentences")
    if not isinstance(sentences, list):
        raise UserError(f"{where}: sentences must be a list.")
    labels = [_text(sentence, "gold_label", where) for sentence in sentences]
    if sorted(labels) != sorted(LABELS):
        raise UserError(
            f"{where}: its gold labels are {', '.join(map(quoted, labels[:6])) or 'none'}; there must be one sentence "
            f"each for {', '.join(LABELS)}."
        )
    ordered = [sentences[labels.index(label)] for label in LABELS]
    texts = [_text(sentence, "sentence", where) for sentence in ordered]
    names = [_label(sentence, "id", f"{where}, a sentence's") for sentence in ordered]
    return Cluster(
        id=cluster_id,
        kind=kind,
        target=_label(row, "target", where),
        domain=_label(row, "bias_type", where),
        context=_text(row, "context", where),
        sentences=(texts[0], texts[1], texts[2]),
        sentence_ids=(names[0], names[1], names[2]),
    )


def _prediction(row: Any, where: str) -> tuple[str, float]:
    score = row.get("score") if isinstance(row, dict) else None
    try:
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise OverflowError
    except OverflowError:  # also a whole number beyond every float
        raise UserError(f"{where}: score must be a finite number, not {quoted(score)}.") from None
    return _label(row, "id", where), float(score)


def _refuse_repeated(path: str | os.PathLike[str], what: str, ids: list[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{path}: {what} id {name} occurs twice.")
        seen.add(name)
