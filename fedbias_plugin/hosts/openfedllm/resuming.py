"""Checkpoints of a patched OpenFedLLM, and the rounds that a resumed run passes over.

The host's script has no way to start in the middle. So a resumed run walks through the finished rounds without a client
in them; at the end of the last one everything that the script holds is filled with what the checkpoint has: the global
state, the server's two proxies, SCAFFOLD's c, and each client's c_i when it trains next.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import shutil
from collections.abc import Mapping
from inspect import BoundArguments
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fedbias_plugin.errors import UserError
from fedbias_plugin.files import plain_json
from fedbias_plugin.hosts.checkpoints import Checkpoint, CheckpointFolder, changed_arguments, find_checkpoint
from fedbias_plugin.redaction import redacted
from fedbias_plugin.session import BiasSession
from fedbias_plugin.training.random_states import random_states, restore_random_states
from fedbias_plugin.training.states import write_state

logger = logging.getLogger(__name__)

CONTROL = "client-control-"
SERVER_STATES = ("proxy_dict", "opt_proxy_dict")
"""The host's momentum and second moment: parameters of its ``global_aggregate``, and names in the checkpoint."""
NEVER = 2**31
HostState: TypeAlias = dict[str, torch.Tensor]
"""A state as the host holds it, on whatever device."""


class Resuming:
    """What a run writes after a round, and what it takes up from an earlier process.

    Args:
        script_args: the host's; a resumed run gets the earlier one's ``output_dir``.
        fed_args: the host's, with the plugin's fields.

    Raises:
        UserError: ``--resume_from`` names no run, a finished one, or one with other arguments.
    """

    def __init__(self, script_args: Any, fed_args: Any) -> None:
        self.script_args, self.fed_args = script_args, fed_args
        self.controls: dict[int, HostState] = {}
        self._overdue: set[int] = set()
        self._trained_with: dict[int, HostState] = {}
        self._save_model_freq = fed_args.save_model_freq
        self.resumed = self._find(Path(fed_args.resume_from)) if fed_args.resume_from else None
        if self.resumed is not None:
            _leave_folder(Path(script_args.output_dir))
            script_args.output_dir = fed_args.resume_from
        self.folder = CheckpointFolder(Path(script_args.output_dir))

    @property
    def finished_rounds(self) -> int:
        """Rounds that are not trained again."""
        return 0 if self.resumed is None else self.resumed.round or 0

    def passes_over(self, round_idx: int) -> bool:
        """Whether round ``round_idx`` (from 0) is finished; the host saves no model in such a round."""
        passed = round_idx < self.finished_rounds
        self.fed_args.save_model_freq = NEVER if passed else self._save_model_freq
        return passed

    def open(self, session: BiasSession) -> None:
        """Let the session of a resumed run continue its records."""
        if self.resumed is not None:
            session.load_state_dict(self.resumed.details["session"])
            logger.info("resumed after round %d of %d", self.finished_rounds, self.fed_args.num_rounds)

    def fill_first(self, model: Any, global_dict: HostState | None) -> None:
        """Nothing but the untouched model was measured: take over how its adapter was drawn."""
        if self.resumed is not None and self.finished_rounds == 0 and global_dict is not None:
            _fill(global_dict, self.resumed.states["global"])
            write_state(model, self.resumed.states["global"])
            restore_random_states(self.resumed.details["random"])

    def fill(self, call: BoundArguments) -> tuple[Any, Any]:
        """What ``global_aggregate`` returns in a round that is passed over; in the last one all is filled in."""
        arguments = call.arguments
        global_dict, control = unchanged(call)
        if self.resumed is not None and arguments["round_idx"] + 1 == self.finished_rounds:
            states = self.resumed.states
            _fill(global_dict, states["global"])
            for name in SERVER_STATES:
                if name in states:
                    _fill(arguments[name], states[name])
            if control is not None:
                _fill(control, states["control"])
            for name in states:
                if name.startswith(CONTROL):
                    self._replace_control(int(name.removeprefix(CONTROL)), states[name])
            restore_random_states(self.resumed.details["random"])
        return global_dict, control

    def take_back_control(self, client: int) -> None:
        """The client's update was refused: it keeps the c_i that it trained with."""
        if client in self._trained_with:
            self._replace_control(client, self._trained_with[client])

    def _replace_control(self, client: int, control: HostState) -> None:
        """The client's next training starts from this c_i, whatever the script holds."""
        self.controls[client] = control
        self._overdue.add(client)

    def give_control(self, client: int, arguments: dict[str, Any]) -> None:
        """Hand SCAFFOLD's c_i to the trainer's arguments, where the script does not have it."""
        given = arguments.get("local_auxiliary")
        if given is None:
            return
        if client in self._overdue:
            self._overdue.remove(client)
            stored = self.controls[client]
            given = {name: stored[name].to(tensor) for name, tensor in given.items()}
            arguments["local_auxiliary"] = given
        self._trained_with[client] = given

    def watch_control(self, client: int, trainer: Any) -> None:
        """Remember the c_i that the trainer hands to the script."""
        inner = getattr(trainer, "get_auxiliary_param", None)
        if inner is None:
            return

        def get_auxiliary_param() -> tuple[HostState, Any]:
            new, change = inner()
            self.controls[client] = new
            return new, change

        trainer.get_auxiliary_param = get_auxiliary_param

    def keep(self, round_number: int, session: BiasSession, global_dict: HostState, **server: HostState | None) -> None:
        """Write a checkpoint after ``round_number``, as often as ``--checkpoint_every`` asks for.

        Args:
            round_number: 0 for the untouched model.
            session: of the run.
            global_dict: the global state.
            server: SCAFFOLD's ``control`` and what :data:`SERVER_STATES` names, as far as the algorithm has them.
        """
        every = self.fed_args.checkpoint_every
        if not every or round_number % every:
            return
        states = {"global": global_dict} | {name: state for name, state in server.items() if state is not None}
        states |= {f"{CONTROL}{client}": control for client, control in self.controls.items()}
        on_cpu = {name: {key: tensor.detach().cpu() for key, tensor in state.items()} for name, state in states.items()}
        details = {"session": session.state_dict(), "random": random_states()}
        self.folder.write(Checkpoint(round_number, self._arguments(), details, on_cpu))

    def tell(self) -> None:
        """How to go on, after a run has ended early."""
        if any(self.folder.folder.glob("round_*")):
            output = shlex.quote(str(self.folder.folder.parent))
            logger.warning("What is finished is kept. To go on: the same command with --resume_from %s", output)

    def _find(self, output: Path) -> Checkpoint:
        checkpoint = find_checkpoint(output, "--resume_from")
        if checkpoint is None:
            raise UserError(f"--resume_from {output}: that run is finished.")
        changed = changed_arguments(checkpoint.arguments, self._arguments())
        if changed:
            raise UserError(f"A run goes on as it began. Changed: {', '.join(changed)}. Give what it began with.")
        return checkpoint

    def _arguments(self) -> dict[str, Any]:
        arguments = dataclasses.asdict(self.script_args) | dataclasses.asdict(self.fed_args)
        arguments["save_model_freq"] = self._save_model_freq
        return redacted(plain_json(arguments)[0])


def unchanged(call: BoundArguments) -> tuple[Any, Any]:
    """What ``global_aggregate`` returns when nothing is averaged: the global state and SCAFFOLD's c as they are."""
    control, _ = call.arguments.get("auxiliary_info") or (None, None)
    return call.arguments["global_dict"], control


def _fill(target: dict[str, Any], source: Mapping[str, torch.Tensor]) -> None:
    for name in target:
        target[name] = source[name].to(target[name])


def _leave_folder(made: Path) -> None:
    """The host has just made a folder for a new run, with nothing but a list of flags in it."""
    if made.is_dir() and os.listdir(made) == ["args.json"]:
        shutil.rmtree(made)
