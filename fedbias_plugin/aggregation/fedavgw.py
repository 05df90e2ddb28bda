"""FedAvgW: clients weighed by the inverse of their size, or of their accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.options import option
from fedbias_plugin.training.trainables import LORA, OTHERS

if TYPE_CHECKING:
    from fedbias_plugin.state import State
    from fedbias_plugin.tracking.records import RoundRecord

FLOOR = 0.05
"""An accuracy below it counts as this: a client that gets everything wrong weighs 20 times a perfect one, not more."""
FEWEST_SHARE = 0.3
"""Fewer effective clients than this share of the round's are told of."""
BY = ("samples", "accuracy")
SCOPES = ("all", "lora")


def inverse_weights(values: Mapping[int, float]) -> dict[int, float]:
    """``w_i = (1/v_i) / sum_j 1/v_j``.

    >>> {client: round(7 * w, 9) for client, w in inverse_weights({0: 100, 1: 200, 2: 400}).items()}
    {0: 4.0, 1: 2.0, 2: 1.0}

    Args:
        values: client id -> v_i, above 0.
    """
    inverse = {client: 1 / value for client, value in values.items()}
    total = math.fsum(inverse.values())
    return {client: one / total for client, one in inverse.items()}


@dataclass
class FedAvgW(Rule):
    """Weighs clients by ``1/n_i``, or by ``1/max(accuracy_i, 0.05)``.

    Naseer and Umar, "When More Parameters Hurt" (arXiv:2605.08992), name inverse weighting FedAvgW, and find that it
    does not close the gap to the worst client. Only their abstract was at hand: of what the inverse is taken, the
    floor, and which tensors are weighed so (``--fedavgw_scope``) are this package's choices, not the paper's formula.
    """

    fedavgw_by: str = option(
        "samples",
        "what clients are weighed by the inverse of: their rows, or the global model's accuracy on their own test rows "
        f"(at least {FLOOR})",
        choices=BY,
    )
    fedavgw_scope: str = option(
        "all",
        "which tensors fedavgw weighs: all, or those of LoRA, and the others (a head, embeddings) as the server "
        "algorithm does by itself",
        choices=SCOPES,
        read_when={"aggregation": ("fedavgw",), **LORA},
        unread_when=OTHERS,
    )

    @property
    def is_sum(self) -> bool:  # type: ignore[override]
        """Not where other tensors have other weights."""
        return self.fedavgw_scope == "all"

    @property
    def reads_own(self) -> frozenset[str]:  # type: ignore[override]
        """``client_accuracy`` where that is what it weighs by."""
        return frozenset({"client_accuracy"} if self.fedavgw_by == "accuracy" else ())

    def weigh(self, reports: ClientReports) -> Weighting:
        """The weights as factors, for every server algorithm; with equal values FedAvg's own result, bit for bit.

        Where other tensors than LoRA's are to be averaged by the host's factors, the sum is given as a state.

        Raises:
            ValueError: a client has no accuracy.
        """
        if self.fedavgw_by == "accuracy":
            values = {c: max(accuracy, FLOOR) for c, accuracy in reports.own("client_accuracy").items()}
        else:
            values = {c: float(rows) for c, rows in reports.sample_counts.items()}
        weighting = Weighting.by_weights(inverse_weights(values), reports)
        others = {name for name in reports.global_state if "lora_" not in name}
        if weighting.factors is None or self.fedavgw_scope == "all" or not 0 < len(others) < len(reports.global_state):
            return weighting
        return Weighting(weighting.weights, None, 1.0, state=_by_kind(reports, others, weighting.factors))

    def warnings(self, record: RoundRecord, alpha: float) -> list[str]:
        """Whether few clients have nearly all of the weight: a tiny client then rules, whatever it trained on."""
        weights = {client: row.weight for client, row in record.clients.items() if row.weight is not None}
        effective = record.effective_clients
        told = super().warnings(record, alpha)
        if effective is None or effective >= FEWEST_SHARE * len(weights):
            return told
        top = max(weights, key=lambda client: weights[client])
        return [
            *told,
            f"tiny clients rule: {effective:.2f} effective clients of {len(weights)}; client {top}, with "
            f"{record.clients[top].rows} rows, has {100 * weights[top]:.0f}% of the weight. Inverse weights reward a "
            "small poisoned client (docs/attacks.md).",
        ]


def _by_kind(reports: ClientReports, others: set[str], factors: Mapping[int, float]) -> State:
    """Theta moved by ``factors``, and by the host's own where a name is among ``others``; in the order of theta."""
    from fedbias_plugin.aggregation.server_optimizer import host_factors
    from fedbias_plugin.aggregation.substitution import weighted_state

    theta = reports.global_state
    host = host_factors(reports.fed_alg, reports.sample_counts)
    moved = {name: tensor for name, tensor in theta.items() if name not in others}
    kept = {name: tensor for name, tensor in theta.items() if name in others}
    new = weighted_state(moved, reports.local_states, factors) | weighted_state(kept, reports.local_states, host)
    return {name: new[name] for name in theta}
