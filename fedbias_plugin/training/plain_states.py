"""States as a loop of one's own has them: ``model.state_dict()``, with tied weights, buffers and frozen weights.

The session's states hold every trained parameter once, under the names of ``states.live_parameters``. A
``state_dict()`` names a tied weight twice, and holds what nobody trains. What is more than the trained parameters is
checked and put aside on the way in, and put back on the way out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.state import State
from fedbias_plugin.training.parameters import live_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlainStates:
    """One round's states, translated.

    Args:
        model: the live model.
        global_state: theta, name -> tensor: the trained parameters alone (``read_state``,
            ``get_peft_model_state_dict``) or all of ``model.state_dict()``.
        local_states: client id -> theta_i, under the same names.

    Attributes:
        global_state, local_states: of the trained parameters alone, each once; the very objects that were given where
            they are so already.

    Raises:
        UserError: the global state does not fit the model; a state shares its memory with the model; its two tensors of
            a tied weight differ; or a client changed what the model does not train. State and tensor are named.
    """

    def __init__(self, model: PreTrainedModel, global_state: State, local_states: Mapping[int, State]) -> None:
        self._given = global_state
        self._given_locals = local_states
        live = live_parameters(model)
        self._is_plain = global_state.keys() != live.keys()
        self._trained = _trained_names(model, live, global_state) if self._is_plain else {}
        memory = {parameter.untyped_storage().data_ptr() for parameter in live.values()} - {0}
        for whose, state in [("The global state", global_state), *_named(local_states)]:
            _check_memory(whose, state, self._trained or live, memory)
        self.global_state, self.local_states = global_state, local_states
        if self._is_plain:
            self.global_state = self._without_rest("The global state", global_state)
            self.local_states = {
                client: self._without_rest(whose, state)
                for (whose, state), client in zip(_named(local_states), local_states, strict=True)
            }

    def _without_rest(self, whose: str, state: State) -> State:
        """The trained parameters of ``state`` once each; unknown names stay, for the server's checks to find."""
        result: State = {}
        for name, tensor in state.items():
            if name in self._given and name not in self._trained:
                if not _same(tensor, self._given[name]):
                    raise UserError(
                        f"{whose} changes {name}, a buffer or frozen weight, and only trained parameters are weighed: "
                        "leave it as it was, or train it (requires_grad)."
                    )
                continue
            once = self._trained.get(name, name)
            if once in result and not _same(tensor, result[once]):
                raise UserError(
                    f"{whose} has two different tensors for one weight: the model ties {name} to {once}. Average both "
                    "the same way, or leave one out of the states."
                )
            result.setdefault(once, tensor)
        return result

    def restored(self, states: Mapping[int, State]) -> Mapping[int, State]:
        """The session's answer under the names that were given.

        Args:
            states: client id -> state, of the trained parameters.

        Returns:
            client id -> state. The client's very own object where its state came back as it went in; what nobody trains
            is the global state's; a state that several clients share stays shared.
        """
        if not self._is_plain:
            return states
        full: dict[int, State] = {}
        result: dict[int, State] = {}
        for client, state in states.items():
            if state is self.local_states.get(client):
                result[client] = self._given_locals[client]
                continue
            if id(state) not in full:
                full[id(state)] = {
                    name: state[self._trained[name]] if name in self._trained else tensor
                    for name, tensor in self._given.items()
                }
            result[client] = full[id(state)]
        return result


def _named(local_states: Mapping[int, State]) -> Iterator[tuple[str, State]]:
    return ((f"Client {client}'s state", state) for client, state in local_states.items())


def _trained_names(model: PreTrainedModel, live: Mapping[str, torch.nn.Parameter], state: State) -> dict[str, str]:
    """Name in ``state`` -> name in ``live``, for every name that stands for a trained parameter."""
    known = model.state_dict(keep_vars=True)
    by_identity = {id(parameter): name for name, parameter in live.items()}
    trained: dict[str, str] = {}
    for name in state:
        if name in live:
            trained[name] = name
        elif name not in known:
            raise UserError(f"The global state does not fit the model, which has no {name}; give model.state_dict().")
        elif id(known[name]) in by_identity:
            trained[name] = by_identity[id(known[name])]
    missing = sorted(live.keys() - trained.values())
    if missing:
        raise UserError(
            f"The global state does not fit the model: {missing[0]}, which is trained, is missing (and "
            f"{len(missing) - 1} more); give model.state_dict()."
        )
    return trained


def _check_memory(whose: str, state: State, names: Mapping[str, object], memory: set[int]) -> None:
    """Refuse a state that is the model's own memory: every client that is scored is written over it."""
    for name in names:
        tensor = state.get(name)
        if tensor is not None and tensor.untyped_storage().data_ptr() in memory:
            raise UserError(
                f"{whose} shares the memory of the model ({name}), into which every client is loaded to be scored: "
                "copy it when it is taken, such as copy.deepcopy(model.state_dict())."
            )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors hold the same, NaN being NaN."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    other = other.to(one.device)
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
