"""SCAFFOLD's c_i of every client, which the host's script keeps to itself.

They pass by twice: the trainer is built with a client's c_i, and hands the new one to the script. There they are read
for checkpoints, and put in where the script has another: after a resume, and after an update that the server refused.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch

HostState: TypeAlias = dict[str, torch.Tensor]
"""A state as the host holds it, on whatever device."""


class ControlVariates:
    """What each client's next training is to start from.

    Attributes:
        known: client id -> c_i, for every client that has trained with SCAFFOLD.
    """

    def __init__(self) -> None:
        self.known: dict[int, HostState] = {}
        self._differs_from_script: set[int] = set()
        self._before_training: dict[int, HostState] = {}

    def new_round(self) -> None:
        """Nobody has trained yet."""
        self._before_training.clear()

    def give(self, client: int, arguments: dict[str, Any]) -> None:
        """Put c_i into the arguments that a trainer is built with, where the script has another."""
        given = arguments.get("local_auxiliary")
        if given is None:
            return
        if client in self._differs_from_script:
            self._differs_from_script.remove(client)
            given = {name: self.known[client][name].to(tensor) for name, tensor in given.items()}
            arguments["local_auxiliary"] = given
        self._before_training[client] = given

    def watch(self, client: int, trainer: Any) -> None:
        """Read the c_i that ``trainer`` hands to the script."""
        inner = getattr(type(trainer), "get_auxiliary_param", None)
        if inner is None:
            return
        itself = weakref.ref(trainer)  # or the trainer would hold itself, its optimizer with it, alive

        def get_auxiliary_param() -> tuple[HostState, Any]:
            new, change = inner(itself())
            self.known[client] = new
            return new, change

        trainer.get_auxiliary_param = get_auxiliary_param

    def take_back(self, client: int) -> None:
        """The client's update was refused: it keeps the c_i that it trained with."""
        if client in self._before_training:
            self.replace(client, self._before_training[client])

    def replace(self, client: int, control: Mapping[str, torch.Tensor]) -> None:
        """The client's next training starts from ``control``, whatever the script holds."""
        self.known[client] = dict(control)
        self._differs_from_script.add(client)
