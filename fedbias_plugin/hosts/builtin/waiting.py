"""How much memory the states of a round take while they wait to be averaged."""

from __future__ import annotations

from collections.abc import Sequence

from fedbias_plugin.federation.state_store import state_bytes
from fedbias_plugin.hosts.builtin.arguments import HostArguments
from fedbias_plugin.state import State
from fedbias_plugin.training.base import Term


def waiting_bytes(host: HostArguments, terms: Sequence[Term], global_state: State, kept_by_stages: int = 0) -> int:
    """Bytes of the clients' states that wait at once.

    One a client of the round, with what its terms send and keep beside it, and what all clients keep.
    """
    clients = len(host.clients_of(round_idx=0))
    sent, kept = sum(len(term.sends) for term in terms), sum(len(term.keeps) for term in terms) + kept_by_stages
    return (clients * (1 + sent + kept) + host.num_clients * kept) * state_bytes(global_state)
