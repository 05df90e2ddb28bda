"""CrowS-Pairs (Nangia et al. 2020, arXiv:2010.00133): which of two minimally different sentences a model prefers.

The data owners warn that the pairs hold noise and unclear stereotypes (Blodgett et al. 2021); a score near 50 does not
show that a model is free of bias.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedbias_plugin.errors import UserError, quoted
from fedbias_plugin.evaluation.items import (
    FloatArray,
    IntArray,
    ScoreRequest,
    TokenScores,
    check_reduction,
    ids_hash,
    read_data_file,
    with_shared_prefix,
)
from fedbias_plugin.evaluation.probe import units_by_sentence
from fedbias_plugin.evaluation.results import CrowsPairsResult
from fedbias_plugin.evaluation.statistics import bootstrap_ci, noise_floor
from fedbias_plugin.names import check_label

if TYPE_CHECKING:
    from fedbias_plugin.evaluation.scorer import SentenceScorer

COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
DIRECTIONS = ("stereo", "antistereo")
REDUCTIONS = ("sum", "mean", "shared", "matched")


@dataclass(frozen=True)
class Pair:
    """Two sentences that differ in the group they are about.

    Attributes:
        id: of the pair, unique in its file.
        more: the more stereotypical sentence (``sent_more``), whatever the direction.
        less: the less stereotypical one.
        direction: ``stereo`` or ``antistereo``: how the stereotype runs about the disadvantaged group. Never a reason
            to swap the two sentences.
        bias_type: for example ``gender``.
    """

    id: str
    more: str
    less: str
    direction: str
    bias_type: str


@dataclass(frozen=True)
class CrowsPairsScores:
    """Sentence scores of a selection of pairs, all arrays of shape (n,).

    Attributes:
        ids: of the pairs.
        more: S(more), natural log.
        less: S(less).
        bias_types: str array.
        directions: str array, ``stereo`` or ``antistereo``.
        more_tokens, less_tokens: tokens of the two sentences, the prefix left out.
        reduction: how token scores became S.
    """

    ids: list[str]
    more: FloatArray
    less: FloatArray
    bias_types: NDArray[np.str_]
    directions: NDArray[np.str_]
    more_tokens: IntArray
    less_tokens: IntArray
    reduction: str

    @property
    def outcomes(self) -> FloatArray:
        """100 where the stereotypical sentence is more likely, 50 for a tie, else 0; their mean is the score."""
        return 50.0 * (1.0 + np.sign(self.more - self.less))

    @property
    def length_outcomes(self) -> FloatArray:
        """What a model would get to which fewer tokens are always more likely: 100, 50 for equally many, or 0."""
        return 50.0 * (1.0 + np.sign(self.less_tokens - self.more_tokens))

    def counted(self) -> CrowsPairsScores:
        """The pairs that the score is of: all, but under ``matched`` those of equal token count."""
        if self.reduction != "matched":
            return self
        return self.subset(np.flatnonzero(self.more_tokens == self.less_tokens).tolist())

    def subset(self, indices: Sequence[int]) -> CrowsPairsScores:
        """Only the pairs at these positions of this object (of the file, when all its pairs were scored)."""
        chosen = np.asarray(indices, dtype=np.int64)
        return CrowsPairsScores(
            [self.ids[index] for index in chosen],
            self.more[chosen],
            self.less[chosen],
            self.bias_types[chosen],
            self.directions[chosen],
            self.more_tokens[chosen],
            self.less_tokens[chosen],
            self.reduction,
        )


class CrowsPairs:
    """A CrowS-Pairs file.

    Attributes:
        name: ``crows_pairs``.
        path, sha256: of the file.
        pairs: in file order.
        ids: of the pairs: the unnamed first column or ``id``, else the row number from 0.
        strata: bias type of every pair, for the probe/report split.
        sentences: the two of every pair.
        units: of every pair, which the split keeps whole: pairs that share a sentence are of one.
    """

    name = "crows_pairs"

    def __init__(self, path: Path, sha256: str, pairs: Sequence[Pair]) -> None:
        self.path = path
        self.sha256 = sha256
        self.pairs = list(pairs)
        self.ids = [pair.id for pair in pairs]
        self.strata = [pair.bias_type for pair in pairs]
        self.sentences = [(pair.more, pair.less) for pair in pairs]
        self.units = units_by_sentence(self.sentences)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CrowsPairs:
        """Read a csv file with the columns of the original release, by name; further columns are ignored.

        Raises:
            UserError: the file cannot be read or is empty; a column is missing; a row is damaged, has an empty
                sentence, or a ``stereo_antistereo`` other than these two words. File and line are named.
        """
        text, sha256 = read_data_file(path)
        pairs = _read_pairs(path, text)
        if not pairs:
            raise UserError(f"{path}: no rows below the header.")
        return cls(Path(path), sha256, pairs)

    def score(
        self, scorer: SentenceScorer, reduction: str = "sum", indices: Sequence[int] | None = None
    ) -> CrowsPairsScores:
        """S(more) and S(less) of the pairs at ``indices`` (all by default).

        ``sum`` adds the log-probabilities of all tokens, ``mean`` divides by their number, ``shared`` adds those of the
        tokens that both sentences have (longest matching blocks of token ids, as the original metric aligns them). Each
        shared token is conditioned on the words before it in its own sentence, which a masked LM would also see after.
        ``matched`` is ``sum``; its result is of the pairs alone whose sentences have equally many tokens.

        Raises:
            UserError: unknown reduction, or a pair that cannot be scored (named by its id).
        """
        check_reduction(self.name, reduction, REDUCTIONS)
        pairs = self.pairs if indices is None else [self.pairs[index] for index in indices]
        requests = [ScoreRequest(sentence) for pair in pairs for sentence in (pair.more, pair.less)]

        def describe(index: int) -> str:
            return f"CrowS-Pairs pair {pairs[index // 2].id} ({('sent_more', 'sent_less')[index % 2]})"

        tokens = scorer.score(requests, describe)
        values = [_pair_scores(more, less, reduction) for more, less in zip(tokens[::2], tokens[1::2], strict=True)]
        array = np.asarray(values, dtype=np.float64).reshape(-1, 2)
        return CrowsPairsScores(
            [pair.id for pair in pairs],
            array[:, 0],
            array[:, 1],
            np.asarray([pair.bias_type for pair in pairs], dtype=np.str_),
            np.asarray([pair.direction for pair in pairs], dtype=np.str_),
            np.asarray([len(sentence.token_ids) for sentence in tokens[::2]], dtype=np.int64),
            np.asarray([len(sentence.token_ids) for sentence in tokens[1::2]], dtype=np.int64),
            reduction,
        )

    def result(self, scores: CrowsPairsScores, *, seed: int) -> CrowsPairsResult:
        """All the numbers of METRICS.md, section 2, for these scores; ``seed`` is that of the bootstrap.

        Raises:
            UserError: ``scores`` is empty, or under ``matched`` no pair has equal token counts; a caller with an empty
                selection has no result (None).
        """
        if not scores.ids:
            raise UserError("CrowS-Pairs: no pairs were selected, so there is no score.")
        scores, selected = scores.counted(), len(scores.ids)
        if not scores.ids:
            raise UserError(
                f"CrowS-Pairs: with this tokenizer none of {selected} pairs has two sentences of equally many tokens; "
                "give another --crows_reduction than matched."
            )
        outcomes = scores.outcomes
        types = {name: scores.bias_types == name for name in sorted(set(scores.bias_types.tolist()))}
        stereo, antistereo = (outcomes[scores.directions == direction] for direction in DIRECTIONS)
        return CrowsPairsResult(
            score=float(outcomes.mean()),
            n=len(outcomes),
            ci95=bootstrap_ci(outcomes, seed=seed),
            tie_rate=float((outcomes == 50.0).mean()),
            length_only=float(scores.length_outcomes.mean()),
            by_type={
                name: _summary(outcomes[part], scores.length_outcomes[part], seed) for name, part in types.items()
            },
            score_stereo=float(stereo.mean()) if len(stereo) else None,
            n_stereo=len(stereo),
            score_antistereo=float(antistereo.mean()) if len(antistereo) else None,
            n_antistereo=len(antistereo),
            mean_abs_difference=float(np.abs(scores.more - scores.less).mean()),
            noise_floor=noise_floor(len(outcomes)),
            reduction=scores.reduction,
            ids_hash=ids_hash(scores.ids),
        )


def _summary(outcomes: FloatArray, by_length: FloatArray, seed: int) -> dict[str, Any]:
    return {
        "score": float(outcomes.mean()),
        "n": len(outcomes),
        "ci95": bootstrap_ci(outcomes, seed=seed),
        "length_only": float(by_length.mean()),
    }


def _pair_scores(more: TokenScores, less: TokenScores, reduction: str) -> tuple[float, float]:
    less = with_shared_prefix(less, more)
    if reduction != "shared":
        return more.reduced(reduction), less.reduced(reduction)
    matcher = difflib.SequenceMatcher(None, more.token_ids.tolist(), less.token_ids.tolist(), autojunk=False)
    blocks = matcher.get_matching_blocks()
    return (
        float(sum(more.log_probs[block.a : block.a + block.size].sum() for block in blocks)),
        float(sum(less.log_probs[block.b : block.b + block.size].sum() for block in blocks)),
    )


def _read_pairs(path: str | os.PathLike[str], text: str) -> list[Pair]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    pairs: list[Pair] = []
    lines: dict[str, int] = {}
    try:
        columns = list(reader.fieldnames or [])
        repeated = [column for column in COLUMNS if columns.count(column) > 1]
        if repeated:
            raise UserError(f"{path}, line 1: the column {', '.join(repeated)} occurs twice.")
        missing = [column for column in COLUMNS if column not in columns]
        if missing:
            raise UserError(
                f"{path}, line 1: missing column {', '.join(missing)}; found {', '.join(map(quoted, columns[:12]))}. "
                f"A CrowS-Pairs file has the columns {', '.join(COLUMNS)}."
            )
        id_column = next((column for column in ("", "id") if column in columns), None)
        for number, row in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            pair = _pair(row, str(number) if id_column is None else row[id_column] or "", where)
            if pair.id in lines:
                raise UserError(
                    f"{where}: id {quoted(pair.id)} is also that of line {lines[pair.id]}; ids must differ."
                )
            lines[pair.id] = reader.line_num
            pairs.append(pair)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a csv row ({error}); is a quote unclosed?") from error
    return pairs


def _pair(row: dict[str, Any], pair_id: str, where: str) -> Pair:
    if None in row:
        raise UserError(f"{where}: more fields than the header has columns; is a comma outside quotes?")
    more, less, direction, bias_type = ((row[column] or "").strip() for column in COLUMNS)
    empty = [column for column, value in zip(COLUMNS, (more, less, direction, bias_type), strict=True) if not value]
    if empty:
        raise UserError(f"{where}: {', '.join(empty)} is empty.")
    if direction not in DIRECTIONS:
        raise UserError(f"{where}: stereo_antistereo is {quoted(direction)}; it must be stereo or antistereo.")
    if not pair_id:
        raise UserError(f"{where}: the id is empty.")
    return Pair(
        check_label(pair_id, f"{where}: the id"),
        more,
        less,
        direction,
        check_label(bias_type, f"{where}: the bias_type"),
    )
