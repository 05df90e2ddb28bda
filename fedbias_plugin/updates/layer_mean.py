"""FedBiAlign's mean: each layer over the clients that trained it, where devices train different numbers of layers.

The course report only outlines it; what is done in detail is this package's choice (docs/offsite.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedbias_plugin.aggregation.base import ClientReports, Rule, Weighting
from fedbias_plugin.updates.base import Stage, Update

if TYPE_CHECKING:
    from fedbias_plugin.arguments import BiasArguments
    from fedbias_plugin.state import State

LAYERS = "adapter_layers"
"""Of the numbers of a client: how many of the last layers it trained."""


@dataclass
class LayerMean(Stage):
    """A client sends the last layers that it trained; the server averages each over those that sent it.

    ``theta_l + (sum_i g_i D_i,l) / W_l``, with g_i the round's factors, whatever rule gave them, and W_l the share of
    them that the clients have who trained layer l; theta_l where W_l is 0. The sum of factors (the mass) stays what it
    was. Where every client trained every layer, the ordinary mean stands bit for bit.

    Attributes:
        trained: client id -> layers that it trained in this round, of those that were received.
    """

    order: ClassVar[int] = 60
    trained: dict[int, int] = dataclasses.field(default_factory=dict)

    def is_for(self, arguments: BiasArguments) -> bool:
        """With offsite tuning and a choice of adapters."""
        return arguments.trainable == "offsite" and getattr(arguments, "ot_adapter_choices", None) is not None

    def at_client(self, update: Update, theta: State, number: int, clients: int) -> Update:
        """What it trained is sent; of other layers the server has theta, bit for bit, whatever an attack made of them.

        An update that does not fit the model is left for the checks.
        """
        layers = update.extra.get(LAYERS)
        if layers is None or update.state.keys() != theta.keys():
            return update
        own = names_of_last(theta, int(layers))
        state = {name: update.state[name] if name in own else part for name, part in theta.items()}
        return dataclasses.replace(update, state=state, payload={"adapter": sum(state[name].nbytes for name in own)})

    def at_server(self, updates: dict[int, Update], theta: State, number: int) -> None:
        """Remember who trained what."""
        found = {client: update.extra.get(LAYERS) for client, update in updates.items()}
        self.trained = {client: int(layers) for client, layers in found.items() if layers is not None}

    def on_weights(self, weighting: Weighting, rule: Rule, reports: ClientReports, number: int) -> Weighting:
        """The mean layer by layer, as a state, where not every client trained every layer."""
        from fedbias_plugin.aggregation.server_optimizer import host_factors

        theta, local = reports.global_state, reports.local_states
        own = {
            client: names_of_last(theta, self.trained[client]) if client in self.trained else theta.keys()
            for client in local
        }
        if weighting.state is not None or all(len(names) == len(theta) for names in own.values()):
            return weighting
        factors = weighting.factors
        if factors is None:
            factors = host_factors(reports.fed_alg, {client: reports.sample_counts[client] for client in local})
        if not any(factors.values()):
            return weighting
        state = mean_by_layer(theta, local, factors, own)
        return dataclasses.replace(weighting, factors=None, state=state, alone=True)  # a mean of equal states rounds


def mean_by_layer(
    theta: State, local: Mapping[int, State], factors: Mapping[int, float], trained: Mapping[int, Collection[str]]
) -> State:
    """``theta + (sum_i g_i D_i) / W`` tensor by tensor, over the clients that trained it; see :class:`LayerMean`.

    Args:
        theta: the global state; not modified, and nothing of it is in the result.
        local: client id -> theta_i.
        factors: client id -> g_i, not all 0.
        trained: client id -> names of the tensors that it trained.
    """
    from fedbias_plugin.aggregation.substitution import weighted_state

    total = math.fsum(factors.values())
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in theta:
        clients = tuple(client for client in local if name in trained[client] and factors[client])
        groups.setdefault(clients, []).append(name)
    new: State = {}
    for clients, names in groups.items():
        share = math.fsum(factors[client] for client in clients) / total
        own = {client: factors[client] / share for client in clients} if share else {}
        new |= weighted_state({name: theta[name] for name in names}, local, own)
    return {name: new[name] for name in theta}


def names_of_last(theta: State, layers: int) -> set[str]:
    """The names of the tensors of the last so many layers.

    >>> sorted(names_of_last({"h.3.w": 0, "h.4.w": 0, "h.5.w": 0}, 2))
    ['h.4.w', 'h.5.w']
    """
    from fedbias_plugin.training.surgery import layer_number

    numbers = {name: layer_number(name) for name in theta}
    last = max((number for number in numbers.values() if number is not None), default=-1)
    return {name for name, number in numbers.items() if number is None or number > last - layers}
