"""Label skew: the rows of every label are dealt by shares that a Dirichlet distribution draws.

Hsu, Qi and Brown 2019 (arXiv:1909.06335) draw a distribution over labels for every client; here, as in Yurochkin et al.
2019 (arXiv:1905.12022) and NIID-Bench, every label has one over clients: p ~ Dir(alpha). The smaller alpha, the fewer
clients hold a label: of C clients E sum p^2 = (alpha + 1)/(C alpha + 1).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedbias_plugin.data.base import LABEL_FIELD, Deal, Partitioner
from fedbias_plugin.data.draws import generator
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.data.partition import Partition
    from fedbias_plugin.data.rows import Row

logger = logging.getLogger(__name__)

MOST_DRAWS = 1000


@dataclass
class Dirichlet(Partitioner):
    """For each label p ~ Dir(alpha) over the clients; drawn again until every client holds enough rows."""

    label_field: str = LABEL_FIELD
    dirichlet_alpha: float = option(
        0.5, "concentration: the smaller, the fewer clients hold the rows of one label", above=0
    )
    dirichlet_min: int = option(
        250, "rows that every client must hold; the shares are drawn again until it does", at_least=1
    )

    def check_flags(self, flags: Mapping[str, Any]) -> None:
        """The fewest rows of a client cannot be more than the most."""
        if self.dirichlet_min > flags["client_samples"]:
            raise UserError(
                f"--dirichlet_min {self.dirichlet_min} is more than --client_samples {flags['client_samples']}, the "
                "most rows of a client; change one."
            )

    def deal(self, what: Deal) -> Partition:
        """The partition of the first draw in which every client holds ``--dirichlet_min`` rows.

        Raises:
            UserError: a row has no label, there are too few rows, or 1,000 draws gave no such partition.
        """
        from fedbias_plugin.data.skew import kept_apart, skewed_partition, value_of

        heldout, rows = kept_apart(what.clean, what.heldout, what.seed)
        by_label: dict[str, list[Row]] = {}
        for row in rows:
            by_label.setdefault(value_of(row, self.label_field, "label_field"), []).append(row)
        counts, draws = self._counts({label: len(by_label[label]) for label in sorted(by_label)}, what)
        hands: list[list[Row]] = [[] for _ in what.shares]
        for label, dealt in counts.items():
            start = 0
            for hand, count in zip(hands, dealt, strict=True):
                hand.extend(by_label[label][start : start + count])
                start += count
        notes = {"partitioner": self.name, "dirichlet_draws": draws}
        return skewed_partition(
            *(hands, heldout, what.sources, what.shares, what.client_samples, what.seed, what.scenario), notes=notes
        )

    def _counts(self, sizes: Mapping[str, int], what: Deal) -> tuple[dict[str, list[int]], int]:
        """Label -> rows of every client, and how many draws it took; ``sizes``: label -> rows."""
        clients, total, most = len(what.shares), sum(sizes.values()), 0
        needed = clients * self.dirichlet_min
        if total < needed:
            raise UserError(
                f"{clients} clients with at least --dirichlet_min {self.dirichlet_min} rows need {needed:,}, but "
                f"{what.clean.name} leaves {total:,} beside {what.heldout:,} held-out ones; the largest that could fit "
                f"is {total // clients}."
            )
        for draw in range(1, MOST_DRAWS + 1):
            rng = generator(f"dirichlet {draw}", what.seed)
            counts = {
                label: cumulative_floor(n, shares(self.dirichlet_alpha, clients, rng)) for label, n in sizes.items()
            }
            smallest = min(map(sum, zip(*counts.values(), strict=True)))
            if smallest >= self.dirichlet_min:
                logger.info(
                    "dirichlet: draw %d gave every client %d rows or more (smallest: %d)",
                    draw,
                    self.dirichlet_min,
                    smallest,
                )
                return counts, draw
            most = max(most, smallest)
        raise UserError(
            f"--dirichlet_min {self.dirichlet_min}: in {MOST_DRAWS:,} draws with --dirichlet_alpha "
            f"{self.dirichlet_alpha:g} some client always held fewer rows; the best draw's smallest client held {most}"
            ". Give a smaller --dirichlet_min or a larger --dirichlet_alpha."
        )


def cumulative_floor(rows: int, parts: Sequence[float]) -> list[int]:
    """``rows`` in whole numbers by ``parts``, which sum to 1: differences of floor(rows * cumulative sum).

    >>> cumulative_floor(10, (0.55, 0.25, 0.2))
    [5, 3, 2]
    """
    ends, reached = [], 0.0
    for part in parts[:-1]:
        reached += part
        ends.append(min(rows, math.floor(rows * reached + 1e-9)))  # .1 + .2 is not to lose a row
    ends.append(rows)
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def shares(alpha: float, clients: int, rng: random.Random) -> list[float]:
    """One draw of Dir(alpha, ..., alpha): gamma variates, normalised; in logarithms, as small ones vanish."""
    logs = [_log_gamma_variate(alpha, rng) for _ in range(clients)]
    largest = max(logs)
    weights = [math.exp(log - largest) for log in logs]
    return [weight / sum(weights) for weight in weights]


def _log_gamma_variate(shape: float, rng: random.Random) -> float:
    """Logarithm of a Gamma(shape, 1) variate (Marsaglia and Tsang 2000), by ``random()`` alone: see ``draws.py``."""
    if shape < 1:
        return _log_gamma_variate(shape + 1, rng) + math.log(1 - rng.random()) / shape
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        normal = math.sqrt(-2 * math.log(1 - rng.random())) * math.cos(2 * math.pi * rng.random())
        v = (1 + c * normal) ** 3
        if v > 0 and math.log(1 - rng.random()) < normal * normal / 2 + d - d * v + d * math.log(v):
            return math.log(d * v)
