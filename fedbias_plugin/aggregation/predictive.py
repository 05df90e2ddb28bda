"""Weights by the predicted bias of the average, with room for noise and a gate on ability (docs/predictive.md).

This package's own rule. Its ancestors: eq. 2 of BAMA (Zhao et al.), which it is where biases agree in sign and none is
noise, and exponential weights with a relative entropy (Kivinen and Warmuth 1997).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.errors import UserError
from fedbias_plugin.options import option

if TYPE_CHECKING:
    from fedbias_plugin.aggregation.bias_program import Lean
    from fedbias_plugin.tracking.records import RoundRecord

LOSS = "heldout_loss"
EXCESS = "excess_loss"
"""In ``extra`` of a client: max(0, L_i - min(median L, L(theta))), nats."""
FEW = 0.6
"""Fewer effective clients than this share of the round's are told of."""
OFF = 3.0
"""A prediction further from what came out than so many times the noise is told of."""


@dataclass
class Predictive(Rule):
    """``argmin KL(w || h) + lambda sum_b max(0, |B_b(w)| - z SE_b) + kappa sum_i w_i e_i``.

    ``e_i = max(0, L_i - min(median L, L(theta)))``. h are the host's weights, with no client's rows counted for more
    than the round's median. In B_b(w) the differences between clients are shrunk by their noise (``Lean.shrunk``).

    Attributes:
        margins: benchmark -> margins of theta on the probe items; empty where nobody measured theta since it changed.
        theta_loss: L(theta), nats per token; None likewise.
        leans: benchmark -> what was predicted from in the round that is being averaged.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"bias"})
    compares_half: ClassVar[bool] = True

    predictive_lambda: float = option(
        0.2,
        "price of a point of predicted bias beyond its noise, nats of relative entropy; 0 weighs by loss",
        at_least=0,
    )
    predictive_z: float = option(2.0, "standard errors of predicted bias that have no price", at_least=0)
    predictive_kappa: float = option(
        20.0,
        "price of a nat of held-out loss above the round's median, or above that of the model that the round began "
        "with where it is lower; 0 measures no client for it",
        at_least=0,
    )
    margins: dict[str, list[float]] = field(default_factory=dict)
    theta_loss: float | None = None
    leans: dict[str, Any] = field(default_factory=dict)

    @property
    def compares(self) -> tuple[str, ...]:
        """The loss on half of the held-out rows, where it has a price."""
        return (LOSS,) if self.predictive_kappa else ()

    @property
    def reads_theta(self) -> bool:
        """Where the last round did not measure it."""
        return not self.margins or bool(self.predictive_kappa and self.theta_loss is None)

    def weigh(self, reports: ClientReports) -> Weighting:
        """The weights of the program, as factors for every server algorithm; the host's untouched where they are those.

        A client whose loss is not finite has none.

        Raises:
            UserError: the loss of a client is not known.
            ValueError: a benchmark was not measured of a client or of theta, or no benchmark tells margins.
        """
        import numpy as np

        from fedbias_plugin.aggregation.bias_program import BiasProgram, excess_losses
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        clients, of_host = list(reports.sample_counts), host_factors(reports.fed_alg, _believed(reports.sample_counts))
        host = np.asarray([of_host[client] for client in clients])
        self.leans = self._leans(reports)
        losses = self._losses(reports) if self.predictive_kappa else []
        excess = excess_losses(losses, self._of_theta(reports)) if losses else np.zeros(len(clients))
        able = np.isfinite(excess)
        prices = self.predictive_lambda, self.predictive_z, self.predictive_kappa
        found, of_able = np.zeros(len(clients)), host[able] / host[able].sum()
        leans = {name: replace(lean, moves=lean.moves[able]) for name, lean in self.leans.items()}
        real = {name: lean.reliability(of_able) for name, lean in leans.items()}
        shrunk = [lean.shrunk(of_able, real[name]) for name, lean in leans.items()]
        found[able] = BiasProgram(of_able, shrunk, excess[able], *prices).solve()
        weighting = Weighting.by_weights(dict(zip(clients, found.tolist(), strict=True)), reports)
        of_round: dict[str, float] = {}
        extra = {client: {EXCESS: one} for client, one in zip(clients, excess.tolist(), strict=True)}
        for name, lean in self.leans.items():
            of_round |= {f"predicted/{name}": float(lean.bias(found)), f"noise/{name}": lean.noise}
            of_round |= {f"of_host/{name}": float(lean.bias(host)), f"reliability/{name}": real[name]}
            for client, alone in zip(clients, lean.bias(np.eye(len(clients))).tolist(), strict=True):
                extra[client][f"alone/{name}"] = alone
        return replace(weighting, extra=extra, of_round=of_round)

    def _leans(self, reports: ClientReports) -> dict[str, Lean]:
        """Benchmark -> what its probe items say of the round."""
        import numpy as np

        from fedbias_plugin.aggregation.bias_program import Lean

        of_theta = self.margins or margins_of(reports.theta_scores)
        measured = [reports.item_scores.get(client, {}) for client in reports.sample_counts]
        names = [name for name in of_theta if any(hasattr(scores.get(name), "margins") for scores in measured)]
        if not names or any(name not in scores for name in names for scores in measured):
            raise ValueError("--aggregation predictive: nobody measured the margins of every client and of theta.")
        leans = {}
        for name in names:
            after = np.stack([scores[name].margins[0] for scores in measured])
            leans[name] = Lean.of(np.asarray(of_theta[name]), after, measured[0][name].margins[1])
        return leans

    def _losses(self, reports: ClientReports) -> list[float]:
        """L_i of the clients of the round."""
        losses = {client: reports.metrics.get(client, {}).get(LOSS, {}).get("loss") for client in reports.sample_counts}
        missing = sorted(client for client, loss in losses.items() if loss is None)
        if missing:
            raise UserError(
                f"--aggregation predictive: the held-out loss of client(s) {missing} is not measured (held-out rows "
                "are longer than --seq_length?); give --predictive_kappa 0 to weigh without it."
            )
        return [float(loss) for loss in losses.values() if loss is not None]

    def _of_theta(self, reports: ClientReports) -> float:
        """L(theta); infinite where nobody could measure it, and only clients compare."""
        found = self.theta_loss if self.theta_loss is not None else reports.of_global.get(LOSS, {}).get("loss")
        return math.inf if found is None else float(found)

    def after(self, scores: Mapping[str, Any]) -> dict[str, float]:
        """``measured/NAME``: B of the new global model on the same items and with the same tau, for the prediction."""
        import numpy as np

        self.margins = margins_of(scores)
        loss = scores[LOSS].loss if LOSS in scores else math.nan
        self.theta_loss = loss if math.isfinite(loss) else None
        leans, self.leans = self.leans, {}
        both = [name for name in leans if name in self.margins]
        return {f"measured/{name}": leans[name].of_margins(np.asarray(self.margins[name])) for name in both}

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Whether few clients count, and whether the prediction failed."""
        return [*super().warnings(record, alpha), *_few(record), *_off(record)]

    def state_dict(self) -> dict[str, Any]:
        """The margins of theta, and its loss."""
        return {"margins": self.margins, "theta_loss": self.theta_loss}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self.margins = {name: list(found) for name, found in state["margins"].items()}
        self.theta_loss = state.get("theta_loss")  # runs of earlier versions did not store it: it is measured


def margins_of(scores: Mapping[str, Any]) -> dict[str, list[float]]:
    """Benchmark -> margin of every item, of those whose scores tell it."""
    return {name: one.margins[0].tolist() for name, one in scores.items() if hasattr(one, "margins")}


def _believed(rows: Mapping[int, int]) -> dict[int, float]:
    """A client's rows are what it claims: no claim counts for more than the round's median (Portnoy et al. 2020)."""
    most = statistics.median(rows.values())
    return {client: min(count, most) for client, count in rows.items()}


def _few(record: RoundRecord) -> Iterator[str]:
    weights = {client: row.weight for client, row in record.clients.items() if row.weight is not None}
    effective = record.effective_clients
    if effective is None or len(weights) < 2 or effective >= FEW * len(weights):
        return
    losses = {client: record.clients[client].extra.get(EXCESS, 0.0) for client in weights}
    least = min(weights, key=lambda client: weights[client])
    yield (
        f"few clients count: {effective:.2f} effective clients of {len(weights)}; client {least} has "
        f"{100 * weights[least]:.1f}% of the weight, {losses[least]:.3f} nats of held-out loss above what is free. An "
        "honest client whose rows are merely different looks the same (docs/predictive.md)."
    )


def _off(record: RoundRecord) -> Iterator[str]:
    if record.extra.get("pair_steps"):  # the server moved the average itself
        return
    for name in (key.removeprefix("measured/") for key in record.extra if key.startswith("measured/")):
        predicted, noise = record.extra.get(f"predicted/{name}"), record.extra.get(f"noise/{name}")
        measured = record.extra[f"measured/{name}"]
        if predicted is not None and noise is not None and abs(measured - predicted) > OFF * noise:
            yield (
                f"prediction off: the average was to lean by {predicted:.1f} points on the probe items of {name}, and "
                f"leans by {measured:.1f} (noise {noise:.1f}): updates do not add up here, or the server's step is no "
                "average (--fed_alg)."
            )
