"""What the built-in host writes down after a round, and how it takes it up again."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from fedbias_plugin.errors import UserError
from fedbias_plugin.hosts.checkpoints import Checkpoint
from fedbias_plugin.state import State
from fedbias_plugin.training.random_states import random_states, restore_random_states
from fedbias_plugin.training.states import write_state

if TYPE_CHECKING:
    from fedbias_plugin.hosts.builtin.loop import Federation

GLOBAL, SERVER, CONTROL = "global", "server-", "client-control-"


def first_checkpoint(federation: Federation) -> Checkpoint:
    """What a run writes before it measures anything: what it was asked for."""
    return Checkpoint(None, _arguments(federation), {"session": federation.session.state_dict()})


def take_checkpoint(federation: Federation, round_number: int) -> Checkpoint:
    """Everything that the rounds after ``round_number`` depend on."""
    server = federation.server.state_dict()
    states = {GLOBAL: federation.global_state}
    states |= {f"{SERVER}{slot}": state for slot, state in server["slots"].items()}
    states |= {f"{CONTROL}{client}": state for client, state in federation.local_controls.items()}
    details = {
        "session": federation.session.state_dict(),
        "model": federation.fingerprint,
        "server": {"fed_alg": server["fed_alg"], "variant": server["variant"]},
        "random": random_states(),
    }
    return Checkpoint(round_number, _arguments(federation), details, states)


def restore_checkpoint(federation: Federation, checkpoint: Checkpoint) -> None:
    """Put the federation where it was after ``checkpoint.round``, and empty ``checkpoint.states``.

    Raises:
        UserError: the model, the data or the plugin's version is another one.
    """
    details, names = checkpoint.details, list(federation.global_state)
    if details["model"] != federation.fingerprint:
        raise UserError(
            "The run to resume had another model or tokenizer: give --model_name_or_path what it began with."
        )
    states = {name: _in_order(state, names) for name, state in checkpoint.states.items()}
    federation.session.load_state_dict(details["session"])
    federation.global_state = _copy(states[GLOBAL])
    write_state(federation.model, federation.global_state)
    slots = {name.removeprefix(SERVER): state for name, state in states.items() if name.startswith(SERVER)}
    fed_alg, variant = details["server"]["fed_alg"], details["server"]["variant"]
    federation.server.load_state_dict({"fed_alg": fed_alg, "variant": variant, "slots": slots})
    for name in [name for name in states if name.startswith(CONTROL)]:
        client = int(name.removeprefix(CONTROL))
        federation.local_controls[client] = federation.store.keep(f"client-{client}-control", _copy(states.pop(name)))
    restore_random_states(details["random"])
    checkpoint.states.clear()  # which are mapped from files that are to be deleted


def _arguments(federation: Federation) -> dict[str, Any]:
    return dataclasses.asdict(federation.host) | dataclasses.asdict(federation.bias)


def _in_order(state: State, names: list[str]) -> State:
    """The tensors in the model's order, in which norms are summed."""
    if state.keys() != set(names):
        odd = sorted(state.keys() ^ set(names))
        raise UserError(f"The checkpoint is of another model: {odd[0]} is in only one of them ({len(odd)} in all).")
    return {name: state[name] for name in names}


def _copy(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}
