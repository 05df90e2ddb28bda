"""What the server does with the clients' states: seven algorithms and ``localN``.

The arithmetic of each, and what ``--fedopt_variant`` means, is in :mod:`fedbias_plugin.aggregation.algorithms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch

from fedbias_plugin.aggregation.algorithms import ServerAlgorithm
from fedbias_plugin.aggregation.pieces import Buffers, Part, empty_like, flat, pieces
from fedbias_plugin.fed_algs import check_fed_alg, local_client
from fedbias_plugin.options import check_options, options
from fedbias_plugin.registry import load
from fedbias_plugin.state import State


def host_factors(fed_alg: str, sample_counts: Mapping[int, float]) -> dict[int, float]:
    """Each client's factor in the host's own average: n_i/n, or 1/C for FedAdagrad, FedYogi and FedAdam.

    >>> host_factors("fedavg", {0: 1, 2: 3}), host_factors("fedadam", {0: 1, 2: 3})
    ({0: 0.25, 2: 0.75}, {0: 0.5, 2: 0.5})

    Raises:
        UserError: ``fed_alg`` is unknown.
    """
    if _algorithm(fed_alg).sample_weighted:
        total = sum(sample_counts.values())
        return {client: count / total for client, count in sample_counts.items()}
    return dict.fromkeys(sample_counts, 1 / len(sample_counts))


class ServerStateDict(TypedDict):
    """What a server optimizer remembers between rounds, to be stored and loaded."""

    fed_alg: str
    variant: str
    slots: dict[str, State]


class ServerOptimizer:
    """The server of one run: averages the clients' states round by round.

    Args:
        fed_alg: a name of :mod:`fedbias_plugin.fed_algs`.
        flags: flag -> value, of which the algorithm's own are read, such as ``fedopt_tau``; defaults for the others.
        num_clients: all clients of the federation (SCAFFOLD's N).

    Raises:
        UserError: unknown algorithm, or a flag out of range.
    """

    def __init__(self, fed_alg: str, flags: Mapping[str, Any] | None = None, *, num_clients: int) -> None:
        self.fed_alg = fed_alg
        self.num_clients = num_clients
        cls = _algorithm(fed_alg)
        self._algorithm = cls(**{name: flags[name] for name in options(cls) if flags and name in flags})
        check_options(self._algorithm)

    @property
    def broadcast(self) -> dict[str, State]:
        """Name -> state that clients get beside theta: SCAFFOLD's ``control_variate``, none before the first round."""
        algorithm = self._algorithm
        return {name: algorithm.slots[name] for name in algorithm.broadcast_names if name in algorithm.slots}

    def aggregate(
        self,
        round_idx: int,
        global_state: State,
        local_states: Mapping[int, State],
        sample_counts: Mapping[int, int],
        control_deltas: Mapping[int, State] | None = None,
        *,
        into: State | None = None,
    ) -> State:
        """The next global state; no input is changed unless it is ``into``.

        Args:
            round_idx: 0 for the first round.
            global_state: theta.
            local_states: client id -> theta_i for the clients of this round, summed in this order.
            sample_counts: client id -> n_i, at least for those clients.
            control_deltas: client id -> new minus old control variate (SCAFFOLD only).
            into: tensors that take the result and are returned, such as those of ``global_state``, which then costs no
                memory; new ones when None, or where one is not contiguous.

        Raises:
            ValueError: no client, a client without its count or control delta, or a state that does not fit theta's
                names and shapes; the message names client and tensor.
        """
        _check_round(global_state, local_states, sample_counts, control_deltas)
        algorithm = self._algorithm
        with torch.no_grad():
            algorithm.prepare(global_state)
            for slot, stored in algorithm.slots.items():
                _check_fits(f"The server's stored {slot}", stored, global_state)
            new_state = {name: _target(into, name, theta) for name, theta in global_state.items()}
            buffers = Buffers()
            for name, new in new_state.items():
                tensors = Part(
                    round_idx,
                    flat(global_state[name]),
                    {client: flat(state[name]) for client, state in local_states.items()},
                    sample_counts,
                    {c: flat(control_deltas[c][name]) for c in local_states} if control_deltas is not None else None,
                    {slot: flat(stored[name]) for slot, stored in algorithm.slots.items()},
                    self.num_clients,
                    buffers,
                )
                for piece in pieces(new):
                    algorithm.write_next(tensors.at(piece), flat(new)[piece])
        return new_state

    @property
    def _variant(self) -> str:
        return getattr(self._algorithm, "fedopt_variant", "openfedllm")

    def state_dict(self) -> ServerStateDict:
        """What this server remembers, not copied: the next round writes into it. Empty slots before the first round."""
        slots = {slot: dict(state) for slot, state in self._algorithm.slots.items()}
        return {"fed_alg": self.fed_alg, "variant": self._variant, "slots": slots}

    def load_state_dict(self, state: ServerStateDict) -> None:
        """Take over what :meth:`state_dict` gave.

        Raises:
            ValueError: it belongs to another algorithm or variant, or has other slots; nothing is changed then.
        """
        mine = {"fed_alg": self.fed_alg, "variant": self._variant}
        for key, value in mine.items():
            if state.get(key) != value:
                raise ValueError(f"The stored server state has {key} {state.get(key)!r}, this run {value!r}.")
        slots = state.get("slots", {})
        if slots and set(slots) != set(self._algorithm.slot_names):
            raise ValueError(
                f"The stored server state of {self.fed_alg} has the parts {sorted(slots)}, "
                f"not {sorted(self._algorithm.slot_names)}."
            )
        self._algorithm.slots = {slot: {name: t.clone() for name, t in part.items()} for slot, part in slots.items()}


def _target(into: State | None, name: str, theta: torch.Tensor) -> torch.Tensor:
    """The tensor that takes the new value of ``theta``."""
    return into[name] if into is not None and into[name].is_contiguous() else empty_like(theta)


def _algorithm(fed_alg: str) -> type[ServerAlgorithm]:
    check_fed_alg(fed_alg)
    return load("algorithm", "fedavg" if local_client(fed_alg) is not None else fed_alg)


def _check_round(
    global_state: State,
    local_states: Mapping[int, State],
    sample_counts: Mapping[int, int],
    control_deltas: Mapping[int, State] | None,
) -> None:
    if not local_states:
        raise ValueError("A round without clients cannot be aggregated.")
    for client, state in local_states.items():
        if client not in sample_counts:
            raise ValueError(f"Client {client} has no entry in sample_counts.")
        _check_fits(f"The state of client {client}", state, global_state)
        if control_deltas is not None:
            if client not in control_deltas:
                raise ValueError(f"Client {client} has no entry in control_deltas.")
            _check_fits(f"The control delta of client {client}", control_deltas[client], global_state)


def _check_fits(what: str, state: State, reference: State) -> None:
    if state.keys() != reference.keys():
        odd = sorted(state.keys() ^ reference.keys())
        raise ValueError(
            f"{what} does not fit the global state: {odd[0]!r} is in only one of them ({len(odd)} in all)."
        )
    for name, theta in reference.items():
        if state[name].shape != theta.shape:
            raise ValueError(f"{what}: {name!r} has shape {tuple(state[name].shape)}, not {tuple(theta.shape)}.")
