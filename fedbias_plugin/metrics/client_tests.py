"""The clients' own test rows, scored once for all metrics that are of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.metrics.base import Block, metric_class
from fedbias_plugin.tasks.base import RowScores

if TYPE_CHECKING:
    from fedbias_plugin.data.rows import Row
    from fedbias_plugin.scoring.scorer import SentenceScorer


NOT_COVERED = (
    "row privacy: epsilon covers the rows that clients train on and no test row of theirs (--client_test_fraction): "
    "what is measured on those, its gaps, and weights made of it (qfedavg, agnostic, fedavgw by accuracy) have no "
    "noise: do not publish them"
)


def uncovered(flags: Mapping[str, Any]) -> list[str]:
    """What a reader of a run with privacy of rows must know: clients' test rows have none.

    With privacy of clients as a whole the run says so of more (``updates/client_dp.py``).
    """
    is_asked = any(flags[name] is not None for name in ("dp_epsilon", "dp_noise_multiplier"))
    return [NOT_COVERED] * bool(is_asked and flags["dp_unit"] == "example" and flags["client_test_fraction"])


class ClientTests:
    """Every client's own test rows.

    Args:
        rows: client id -> test rows, at least one each.
        sizes: client id -> n_i, rows it trains on, without what transforms add.
        score: rows and a scorer -> their scores, as the task of the run has them.
        tells_right: whether these say which rows the model is right about.
    """

    def __init__(
        self,
        rows: Mapping[int, Sequence[Row]],
        sizes: Mapping[int, int],
        score: Callable[[Sequence[Row], SentenceScorer], RowScores],
        *,
        tells_right: bool = False,
    ) -> None:
        self.rows, self.sizes, self.tells_right = rows, sizes, tells_right
        self._score = score
        self._last: tuple[Any, dict[int, RowScores]] | None = None

    def scores_of(self, client: int, scorer: SentenceScorer) -> RowScores:
        """As :meth:`scores`, of one client's rows by a model of its own."""
        return _of(self._score(self.rows[client], scorer), slice(None))

    @property
    def count(self) -> int:
        """Rows of all clients."""
        return sum(map(len, self.rows.values()))

    def scores(self, scorer: SentenceScorer) -> dict[int, RowScores]:
        """Client id -> scores of its rows; those that are too long to be scored are left out.

        Raises:
            UserError: a score is no number, or no row of a client can be scored.
        """
        if self._last is not None and self._last[0]() is scorer:
            return self._last[1]
        found = self._score([row for rows in self.rows.values() for row in rows], scorer)
        by_client, start = {}, 0
        for client, rows in self.rows.items():
            by_client[client] = _of(found, slice(start, start + len(rows)))
            start += len(rows)
            if not len(by_client[client].nll):
                raise UserError(
                    f"--client_test_fraction: none of the {len(rows)} test rows of client {client} fits into "
                    "--seq_length with its prompt, so that the model cannot be measured on them. Raise --seq_length."
                )
        self._last = weakref.ref(scorer), by_client
        return by_client


def own_scores(blocks: Mapping[str, Block]) -> dict[str, dict[int, float]]:
    """Metric -> client id -> value on its own test rows, of a model's ``blocks``."""
    found = {name: metric_class(name).by_client(block) for name, block in blocks.items()}
    return {name: {client: own["value"] for client, own in one.items()} for name, one in found.items() if one}


def _of(scores: RowScores, part: slice) -> RowScores:
    """The rows of ``part`` that were scored."""
    fits = ~(scores.tokens[part] != scores.tokens[part])  # NaN is no number, not even itself
    right = None if scores.right is None else scores.right[part][fits]
    return RowScores(scores.nll[part][fits], scores.tokens[part][fits], right)
